"""The engine on DeepSpeed: ZeRO, offload, sequence parallelism."""
