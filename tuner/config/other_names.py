"""What other tools call a field of ours: transformers' Trainer, PEFT, TRL, LLaMA-Factory, Axolotl, ms-swift,
Unsloth and XTuner.
"""

from collections.abc import Collection

NAMES = {
    "algo.optim.lr": "learning_rate base_lr max_lr peak_lr",
    "algo.epochs": "num_epochs num_train_epochs n_epochs max_epochs epoch",
    "algo.steps": "max_steps max_iters iters num_steps train_iters total_steps",
    "algo.batch_tokens": (
        "gradient_accumulation_steps accumulative_counts grad_accum accumulation_steps global_batch_size"
    ),
    "machine.micro_batch": (
        "batch_size per_device_train_batch_size micro_batch_size train_batch_size per_device_batch_size bs"
    ),
    "algo.r": "lora_r lora_rank rank lora_dim",
    "algo.alpha": "lora_alpha",
    "algo.dropout": "lora_dropout",
    "algo.targets": "target_modules lora_target lora_target_modules modules_to_train",
    "algo.dora": "use_dora",
    "algo.rslora": "use_rslora",
    "algo.lora_init": "init_lora_weights init_weights pissa_init",
    "algo.lora_plus": "loraplus_lr_ratio lora_plus_ratio",
    "algo.neftune": "neftune_noise_alpha neftune_alpha",
    "algo.label_smoothing": "label_smoothing_factor",
    "algo.quant": "quantization_bit load_in_4bit load_in_8bit quant_bits quantization bits",
    "algo.precision": "bf16 fp16 dtype torch_dtype mixed_precision pure_bf16",
    "algo.schedule": "lr_scheduler lr_scheduler_type scheduler",
    "algo.warmup": "warmup_ratio warmup_steps num_warmup_steps lr_warmup_fraction",
    "algo.clip": "max_grad_norm max_norm gradient_clipping grad_clip clip_grad",
    "algo.optim.name": "optimizer optim optimizer_type",
    "algo.optim.weight_decay": "wd",
    "algo.optim.betas": "adam_beta1 adam_beta2 beta1 beta2 adam_betas",
    "algo.optim.eps": "adam_epsilon epsilon",
    "algo.early_stop": "early_stopping early_stopping_patience patience",
    "algo.last_layers": "freeze_trainable_layers num_layer_trainable",
    "model.path": (
        "model_name_or_path model_path pretrained_model_name_or_path base_model model_name model_id"
    ),
    "model.chat.default_system": "default_system_prompt",
    "model.new_tokens": "add_tokens new_special_tokens additional_special_tokens",
    "data.path": "dataset train_file data_path data_files dataset_path dataset_name train_data",
    "data.length": (
        "max_length max_seq_length max_seq_len seq_length seq_len sequence_len cutoff_len "
        "block_size pack_max_length"
    ),
    "data.system": "system_prompt system",
    "data.held_out": ("val_size eval_split val_set_size validation_split split_dataset_ratio test_size"),
    "data.held_out_path": "eval_dataset val_dataset validation_file test_datasets",
    "data.loss": "train_on_inputs train_on_prompt mask_history loss_scale",
    "data.columns": "column_mapping field_mapping",
    "machine.gpus": "num_gpus n_gpus devices n_gpu num_gpu",
    "machine.processes": "nproc_per_node num_processes world_size",
    "machine.nodes": "nnodes num_nodes",
    "machine.zero": "zero_stage deepspeed_stage",
    "machine.recompute": ("gradient_checkpointing use_gradient_checkpointing activation_checkpointing"),
    "machine.attention": "attn_implementation flash_attn flash_attention use_flash_attn",
    "machine.kernels": "use_liger_kernel enable_liger_kernel torch_compile compile",
    "machine.sequence_parallel": "sequence_parallel_size sp_size context_parallel_size",
    "machine.save_every": "save_steps save_interval save_freq checkpoint_interval",
    "machine.keep": "save_total_limit max_checkpoints max_keep_ckpts",
    "machine.measure_every": "eval_steps eval_interval evaluation_interval val_check_interval",
    "machine.trackers": "report_to logger wandb tensorboard",
    "machine.project": "wandb_project project_name",
    "machine.workers": (
        "dataloader_num_workers num_workers preprocessing_num_workers num_proc dataset_num_proc"
    ),
    "machine.deterministic": "full_determinism",
    "eval.prompts": "evaluation_inputs sample_prompts",
    "generation.max_new_tokens": "max_tokens",
    "root": "output_dir work_dir save_dir out_dir output",
    "name": "run_name experiment_name exp_name",
    "seed": "random_seed",
}
"""our field → others' names of it"""
CHOICES = {
    "algo": "finetuning_type peft_type train_type adapter sft_type tuner_type method",
    "model/chat": "template chat_template prompt_template template_type",
}
"""our group → others' names of it"""
VERBS = {
    "run": "train sft finetune fine-tune fit pt",
    "copy": "copy-cfg",
    "list": "list-cfg list-dataset-format",
    "evaluate": "eval test",
    "merge": "merge-lora merge_lora",
    "convert": "pth_to_hf",
    "export": "save push",
    "preview": "log-dataset preprocess check-custom-dataset",
    "status": "ls ps runs",
    "clean": "rm gc prune",
    "config": "show",
    "stop": "kill",
}
"""our verb → others' names of it"""
WORDS = {
    "algo.batch_tokens": (
        "It counts the tokens of an optimizer step; how often gradients are accumulated follows."
    ),
    "machine.micro_batch": "It is how many packs one forward pass takes; what an optimizer step sees is "
    "algo.batch_tokens, in tokens.",
    "model.path": "It goes with model=local; a hub's model is model=hub model.repo=ORG/NAME.",
    "data.path": "It goes with data=local; a hub's data set is data=hub data.repo=ORG/NAME.",
}
"""what is to be said besides"""

_OURS = {other: field for field, names in NAMES.items() for other in names.split()}
_VERBS = {other: verb for verb, names in VERBS.items() for other in names.split()}
_GROUPS = {other: group for group, names in CHOICES.items() for other in names.split()}


def our_field(name: str, fields: Collection[str]) -> str | None:
    """Which of our `fields` another tool's name means, or a name that lacks a part; None where that is not
    known.

    >>> our_field("train.learning_rate", ["algo.optim.lr"]), our_field("algo.lr", ["algo.optim.lr"])
    ('algo.optim.lr', 'algo.optim.lr')
    """
    last = _last_part(name)
    alike = [field for field in fields if field.rpartition(".")[2] == last]
    return alike[0] if len(alike) == 1 else _OURS.get(last)


def ours_for(name: str, fields: Collection[str]) -> str:
    """The same as a sentence, also of groups; nothing where that is not known."""
    if (field := our_field(name, fields)) is not None:
        return " ".join([f" Here it is {field}.", *([WORDS[field]] if field in WORDS else [])])
    if group := _GROUPS.get(_last_part(name)):
        return f" Here it is a choice, {group}=NAME: python -m tuner list {group.rpartition('/')[2]}s."
    return ""


def our_verb(word: str) -> str | None:
    """What another tool's verb is called here; None where that is not known.

    >>> our_verb("train")
    'run'
    """
    return _VERBS.get(word)


def _last_part(name: str) -> str:
    return name.lower().replace("-", "_").rpartition(".")[2]
