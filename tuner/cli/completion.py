"""Completion for bash, zsh and fish: a script made from the verbs, the groups with their options, and the
fields with their values.

    eval "$(tuner --completion bash)"        or zsh
    tuner --completion fish | source

It holds the words as they are now, so that completing starts no Python. The runs, which come and go, it
lists from the directory.
"""

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from tuner.api.exports import KINDS
from tuner.cli.parse import OPTIONS, SHELLS
from tuner.cli.verbs import VERBS
from tuner.config.build import field_paths
from tuner.config.compose import group_options
from tuner.config.search_space import SETTINGS, SWEEPER
from tuner.pipeline.selection import stop_words
from tuner.stages import STAGES

RUN_FIELDS = ("model.run",)
"""fields whose values are runs"""
BASH = """\
_tuner_runs() {{
    local run root="${{1/#~\\//$HOME/}}"
    runs=(last)
    for run in "$root"/runs/*/; do
        run="${{run%/}}"
        if [[ -d $run ]]; then runs+=("${{run##*/}}"); fi
    done
}}
_tuner() {{
    if [[ -n ${{ZSH_VERSION:-}} ]]; then emulate -L sh; fi
    # from the line itself: bash cuts COMP_WORDS at `=`, and takes model=run for the verb
    local line="${{COMP_LINE:0:$COMP_POINT}}" word verb="" before="" root=outputs
    local current="${{line##*[[:space:]]}}"
    local -a candidates=() runs=()
    for word in ${{line%"$current"}}; do
        case "$word" in
            root=*) root="${{word#root=}}" ;;
            {any_verb}) if [[ -z $verb ]]; then verb="$word"; fi ;;
        esac
        before="$word"
    done
    _tuner_runs "$root"
    case "$verb" in
{after}
        *) candidates=({verbs}) ;;
    esac
    case "$current" in
        -*) candidates+=({options}) ;;
{values}
        *) case "$verb" in
            {fieldless}) ;;
            *) candidates+=({groups}); if [[ -n $current ]]; then candidates+=({fields}); fi ;;
        esac ;;
    esac
    case "$before" in
        -cd|--config-dir) candidates=() ;;
        --completion) candidates=({shells}) ;;
    esac
    COMPREPLY=()
    for word in ${{candidates[@]+"${{candidates[@]}}"}}; do
        if [[ $word == "$current"* ]]; then
            if [[ -z ${{ZSH_VERSION:-}} ]]; then printf -v word %q "$word"; fi
            COMPREPLY+=("$word")
        fi
    done
    if [[ ${{#COMPREPLY[@]}} -eq 1 && ${{COMPREPLY[0]}} == *= ]]; then compopt -o nospace 2>/dev/null; fi
    # bash replaces only what stands behind the `=`
    if [[ $current == *=* && ${{COMP_WORDBREAKS:-}} == *=* ]]; then COMPREPLY=("${{COMPREPLY[@]#*=}}"); fi
}}
complete -o default -F _tuner tuner
"""
FISH = """\
function _tuner_runs
    set -l root outputs
    for word in $argv
        if string match -q 'root=*' -- $word
            set root (string replace 'root=' '' -- $word | string replace -r '^~/' "$HOME/")
        end
    end
    echo last
    for run in $root/runs/*/
        string replace -r '.*/([^/]+)/$' '$1' -- $run
    end
end
function _tuner
    set -l words (commandline -opc)[2..]
    set -l current (commandline -ct)
    set -l verb
    for word in $words
        if contains -- $word {verbs}
            set verb $word
            break
        end
    end
    switch "$words[-1]"
        case -cd --config-dir
            return
        case --completion
            printf '%s\\n' {shells}
            return
    end
    switch "$current"
        case '-*'
            printf '%s\\n' {options}
{values}
        case '*'
            if not contains -- "$verb" {fieldless}
                printf '%s\\n' {groups}
                if test -n "$current"
                    printf '%s\\n' {fields}
                end
            end
    end
    switch "$verb"
{after}
        case '*'
            printf '%s\\n' {verbs}
    end
end
complete -c tuner -a '(_tuner)'
"""
PREPARED = {
    "bash": "",
    "zsh": "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n",
    "fish": "",
}
"""shell → what goes before the script"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shell:
    """How a shell writes the parts of a script."""

    script: str
    quote: Callable[[str], str]
    case: str
    """a branch that offers `words` where something is `pattern`"""
    runs: str
    """what lists the runs, among such words"""
    runs_of: str
    """the same behind the name of a field and `=`"""


def _fish_quote(word: str) -> str:
    return "'" + word.replace("\\", "\\\\").replace("'", "\\'") + "'"


_BASH = _Shell(
    script=BASH,
    quote=shlex.quote,
    case="        {pattern}) candidates+=({words}) ;;",
    runs='"${runs[@]}"',
    runs_of='"${{runs[@]/#/{field}=}}"',
)
_FISH = _Shell(
    script=FISH,
    quote=_fish_quote,
    case="        case {pattern}\n            printf '%s\\n' {words}",
    runs="(_tuner_runs $words)",
    runs_of="{field}=(_tuner_runs $words)",
)


def completion_script(shell: str, extra: Path | None) -> str:
    """What `shell` has to evaluate; `extra` is a directory of the user's own options."""
    kind = _FISH if shell == "fish" else _BASH
    groups, known = group_options(extra), field_paths()
    choices: Mapping[str, list[str]] = {**groups, **{path: _choices(path, known[path]) for path in known}}

    def offer(words: Iterable[str]) -> str:
        return " ".join(map(kind.quote, words))

    values = {
        f"{name}=": offer(f"{name}={value}" for value in found) for name, found in choices.items() if found
    }
    values |= {f"{field}=": kind.runs_of.format(field=field) for field in RUN_FIELDS}
    fieldless = [verb.name for verb in VERBS.values() if not verb.fields]
    star = "'{}*'" if shell == "fish" else "{}*"
    return PREPARED[shell] + kind.script.format(
        verbs=offer(VERBS),
        any_verb="|".join(VERBS),
        after="\n".join(
            kind.case.format(pattern=verb.name, words=" ".join(_behind(verb.words, verb.flags, groups, kind)))
            for verb in VERBS.values()
        ),
        options=offer(OPTIONS),
        values="\n".join(
            kind.case.format(pattern=star.format(name), words=words) for name, words in values.items()
        ),
        fieldless=(" " if shell == "fish" else "|").join(fieldless),
        groups=offer(f"{group}=" for group in groups),
        fields=offer([*(f"{path}=" for path in known), SWEEPER, *(f"hydra.sweeper.{s}=" for s in SETTINGS)]),
        shells=offer(SHELLS),
    )


def _behind(words: str, flags: Iterable[str], groups: Iterable[str], shell: _Shell) -> Iterable[str]:
    """What may stand behind a verb whose usage has these words."""
    yield from map(shell.quote, flags)
    for place, offered in (("VERB", VERBS), ("GROUP", groups), ("KIND", KINDS)):
        if place in words:
            yield from map(shell.quote, offered)
    if "RUN" in words:
        yield shell.runs


def _choices(path: str, kind: Any) -> list[str]:
    """The values that a field can have, where they are words; none where they are not known."""
    if path in ("until", "redo"):
        return stop_words(STAGES)
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    if kind is bool:
        return ["true", "false"]
    return (
        [word for part in get_args(kind) for word in _choices(path, part)]
        if get_origin(kind) is Union
        else []
    )
