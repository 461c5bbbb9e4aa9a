"""predict: a file of rows answered by a finished run. It leaves no artifact and is no stage of the pipeline:
the verb runs it in a process of its own, as stages are run.
"""

from typing import Any

from tuner.pipeline.stage import Context, Stage


def run(ctx: Context) -> dict[str, Any]:
    """Write the file `ctx.out`."""
    from tuner.models.predict.answer_file import PredictJob, answer_file

    given = ctx.inputs["request"]
    told = given.facts
    job = PredictJob(
        rows=given.files["rows"],
        out=ctx.out,
        home=given.dir,
        model=given.files["model"],
        adapter=given.files.get("adapter"),
        base=given.files.get("base"),
        kept=told["kept"],
        content=told["content"],
        told=told["told"],
        logprobs=told["logprobs"],
    )
    return answer_file(job, ctx.config, ctx.say)


STAGE = Stage(name="predict", version=1, run=run, child=True, computes=True, stop=False)
