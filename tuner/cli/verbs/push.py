"""`push RUN NAME [KIND]`: a run's result into a repository of the hub."""

import sys
from typing import TYPE_CHECKING

from tuner.cli.on_a_run import fields_of_run, find_one
from tuner.cli.verb import CommandLine, Verb
from tuner.errors import ConfigError

if TYPE_CHECKING:
    from tuner.api.publishing import Parcel


def run(line: CommandLine) -> int:
    from tuner.api import to_stderr
    from tuner.api.publishing import push_run

    found = find_one(line, more_words=True)
    if len(line.bare) not in (2, 3):
        raise ConfigError("push takes a run, a repository, and what of it: python -m tuner push RUN org/name")

    def agrees(parcel: "Parcel") -> bool:
        to_stderr(parcel.text)
        if "--yes" in line.flags:
            return True
        if not sys.stdin.isatty():
            raise ConfigError("Nothing was sent: this is what would be. Add --yes to send it.")
        seen = "everybody" if "--public" in line.flags else "you alone"
        return input(f"Send this to {parcel.repo}, for {seen} to see? [y/N] ").strip().lower() in ("y", "yes")

    kind = line.bare[2] if line.bare[2:] else None
    words = fields_of_run(line)
    sent = push_run(
        found,
        line.bare[1],
        kind,
        words,
        to_stderr,
        public="--public" in line.flags,
        agrees=agrees,
        extra=line.extra,
    )
    print(sent or "nothing was sent")
    return 0


VERB = Verb(
    name="push",
    words="RUN NAME",
    help=(
        "send the adapter (or `model`, the merged model) with a model card to a private repository of the "
        "Hugging Face hub; shows all of it first"
    ),
    run=run,
    examples={
        "push support me/support-lora": "the adapter, for you alone",
        "push support me/support model --public --yes": "the merged model, for everybody",
    },
    flags={"--public": "lets everybody see it", "--yes": "asks nothing"},
    on_a_run=True,
)
