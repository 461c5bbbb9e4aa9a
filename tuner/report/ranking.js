"use strict";
// A click on a column's head sorts the rows by it, a second click turns them round; what is missing stays last.
for (const head of document.querySelectorAll(".ranking thead th")) {
  head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = document.querySelector(".ranking tbody");
    const value = (row) => row.children[head.cellIndex].dataset.value;
    const apart = (a, b) => (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      return up ? apart(x, y) : apart(y, x);
    };
    body.append(...Array.from(body.rows).sort(order));
  });
}
