"""Completion for bash and zsh: a script made from the verbs, the groups with their options, and the fields.

    eval "$(tuner --completion bash)"

It holds the words as they are now, so that completing starts no Python. The runs, which come and go, it
lists from the directory.
"""

import shlex
from pathlib import Path

from tuner.cli.parse import OPTIONS
from tuner.cli.verbs import VERBS
from tuner.config.build import field_paths
from tuner.config.compose import group_options

SCRIPT = """\
_tuner() {{
    if [[ -n ${{ZSH_VERSION:-}} ]]; then emulate -L sh; fi
    # from the line itself: bash cuts COMP_WORDS at `=`, and takes model=run for the verb
    local line="${{COMP_LINE:0:$COMP_POINT}}" word
    local current="${{line##*[[:space:]]}}" candidates="{verbs} {options}"
    for word in ${{line%"$current"}}; do
        case "$word" in
{flags}
        esac
    done
    case "$current" in
{values}
        ?*) candidates="$candidates {groups} {fields}" ;;
        *) candidates="$candidates {groups}" ;;
    esac
    COMPREPLY=()
    for word in $candidates; do
        if [[ $word == "$current"* ]]; then COMPREPLY+=("$word"); fi
    done
    if [[ ${{#COMPREPLY[@]}} -eq 1 && ${{COMPREPLY[0]}} == *= ]]; then compopt -o nospace 2>/dev/null; fi
    # bash replaces only what stands behind the `=`
    if [[ $current == *=* && ${{COMP_WORDBREAKS:-}} == *=* ]]; then COMPREPLY=("${{COMPREPLY[@]#*=}}"); fi
}}
complete -o default -F _tuner tuner
"""
PREPARED = {"bash": "", "zsh": "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"}
"""shell → what goes before the script"""
RUNS = '" last $(ls outputs/runs 2>/dev/null)"'


def completion_script(shell: str, extra: Path | None) -> str:
    """What `shell` has to evaluate; `extra` is a directory of the user's own options."""
    groups = group_options(extra)
    flags = [
        f"{name}) candidates={shlex.quote(' '.join(verb.flags))}{RUNS if verb.on_a_run else ''}; break ;;"
        for name, verb in VERBS.items()
    ]
    values = [
        f"{group}=*) candidates={shlex.quote(' '.join(f'{group}={option}' for option in found))} ;;"
        for group, found in groups.items()
    ]
    return PREPARED[shell] + SCRIPT.format(
        verbs=" ".join(VERBS),
        options=" ".join(OPTIONS),
        flags="\n".join(f"            {line}" for line in flags),
        values="\n".join(f"        {line}" for line in values),
        groups=" ".join(f"{group}=" for group in groups),
        fields=" ".join(f"{path}=" for path in field_paths()),
    )
