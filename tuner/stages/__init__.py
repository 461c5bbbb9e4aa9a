"""The stages, in the order in which they run. Importing them imports nothing heavy: that happens inside
their `run`.
"""

from tuner.pipeline.stage import Stage
from tuner.stages.baseline import STAGE as BASELINE
from tuner.stages.convert import STAGE as CONVERT
from tuner.stages.evaluate import STAGE as EVALUATE
from tuner.stages.fetch_data import STAGE as FETCH_DATA
from tuner.stages.fetch_model import STAGE as FETCH_MODEL
from tuner.stages.merge import STAGE as MERGE
from tuner.stages.predict import STAGE as PREDICT
from tuner.stages.tokenize import STAGE as TOKENIZE
from tuner.stages.train import STAGE as TRAIN

STAGES: tuple[Stage, ...] = (FETCH_DATA, FETCH_MODEL, TOKENIZE, TRAIN, CONVERT, MERGE, BASELINE, EVALUATE)
OF_VERBS: tuple[Stage, ...] = (PREDICT,)
"""what verbs on a run do in a process of its own; it leaves no artifact"""
