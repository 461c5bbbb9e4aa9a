"""A run over the store: what a stage is, the plan and its reasons, the execution, the run's directory."""
