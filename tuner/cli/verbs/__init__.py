"""The verbs of the command line, a file each: one thin `run` and a `VERB`. What they do with a run or a
config is in the modules beside this folder.

To add a verb, write its file and enter it here; `--help` shows them in this order.
"""

from tuner.cli.verb import Verb
from tuner.cli.verbs import (
    chat,
    clean,
    compare,
    config,
    convert,
    copy,
    doctor,
    evaluate,
    export,
    help,
    list,
    merge,
    plan,
    predict,
    preview,
    push,
    rename,
    reproduce,
    run,
    serve,
    status,
    stop,
)

VERBS: dict[str, Verb] = {
    module.VERB.name: module.VERB
    for module in (
        run,
        plan,
        preview,
        status,
        list,
        config,
        copy,
        doctor,
        help,
        chat,
        predict,
        serve,
        compare,
        stop,
        convert,
        merge,
        evaluate,
        export,
        push,
        reproduce,
        rename,
        clean,
    )
}
"""name → verb"""
