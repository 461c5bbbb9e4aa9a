"""`tuner`: fine-tuning of language models as a pipeline that knows what it has done."""

__version__ = "0.1.0"
