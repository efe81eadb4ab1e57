"""Keys that TRL 0.8 to 1.16 and transformers 4 to 5 renamed or removed, and what to write instead.

Plain data. An entry exists only where the key is not known today; a test holds every entry to that,
and every successor to being a key.
"""

from typing import NamedTuple

ADAPTED = ("sft", "reward", "dpo", "grpo", "ppo", "rejection")
TRAINING = ("pretrain", *ADAPTED)
SFT = ("pretrain", "sft", "rejection")
DPO = ("dpo",)
GRPO = ("grpo", "ppo")
PPO = ("ppo",)
ALL = (*TRAINING, "evaluate")
OF_A_BASE = (*ADAPTED, "evaluate")


class Renamed(NamedTuple):
    """What became of a key.

    Attributes:
        old: the key of then.
        stages: where it was known, or is often written.
        successor: the key of now; None where there is none.
        write: the value of now, where it is not the one of then; where there is no successor, what
            to do instead.
    """

    old: str
    stages: tuple[str, ...]
    successor: str | None
    write: str = "{value}"


TABLE = (
    # the model
    Renamed("torch_dtype", OF_A_BASE, "dtype"),
    Renamed("use_flash_attention_2", ALL, "attn_implementation", "flash_attention_2"),
    Renamed("peft_lora_r", ADAPTED, "lora_r"),
    Renamed("peft_lora_alpha", ADAPTED, "lora_alpha"),
    Renamed("model_code_revision", OF_A_BASE, "model_revision"),
    Renamed(
        "tokenizer_name_or_path", OF_A_BASE, None, "the tokenizer is that of model_name_or_path"
    ),
    Renamed("tokenizer_name", OF_A_BASE, None, "the tokenizer is that of model_name_or_path"),
    Renamed("tokenizer", OF_A_BASE, None, "the tokenizer is that of model_name_or_path"),
    # the data
    Renamed("dataset_config_name", TRAINING, "dataset_config"),
    Renamed("dataset_mixer", TRAINING, "datasets", "[{{path: …, fraction: …}}]"),
    Renamed("dataset_mixture", TRAINING, "datasets", "[{{path: …, fraction: …}}]"),
    Renamed("preprocessing_num_workers", (*SFT, "reward", "dpo"), "dataset_num_proc"),
    Renamed("sanity_check", TRAINING, None, "write max_steps: 10 for a short run"),
    # sft
    Renamed("max_seq_length", SFT, "max_length"),
    Renamed("max_seq_length", ("reward", "dpo"), "max_length"),
    Renamed("dataset_batch_size", SFT, None, "rows are tokenized in batches of their own"),
    Renamed("num_of_sequences", SFT, None, "packing needs no buffer any more; write packing: true"),
    Renamed("chars_per_token", SFT, None, "packing counts tokens; write packing: true"),
    Renamed("use_liger", TRAINING, "use_liger_kernel"),
    Renamed("chat_template", ("sft", "reward"), "chat_template_path", "template.jinja"),
    # dpo
    Renamed("max_prompt_length", DPO, None, "max_length bounds prompt and completion together"),
    Renamed(
        "max_prompt_length", GRPO, None, "prompts are not cut; leave long ones out of the data"
    ),
    Renamed("max_target_length", DPO, "max_length", "…, for prompt and completion together"),
    Renamed("max_completion_length", DPO, "max_length", "…, for prompt and completion together"),
    Renamed("label_pad_token_id", DPO, None, "the mask is TRL's own now"),
    Renamed("padding_value", DPO, None, "the tokenizer's pad token is used"),
    Renamed("is_encoder_decoder", DPO, None, "the model's config says it"),
    Renamed("generate_during_eval", DPO, None, "an `evaluate` stage generates"),
    Renamed("rpo_alpha", DPO, "loss_weights", "[1.0, {value}], with loss_type: [sigmoid, sft]"),
    Renamed("reference_free", DPO, None, "the reference is where start_from starts"),
    Renamed("force_use_ref_model", DPO, None, "the reference is where start_from starts"),
    Renamed("model_adapter_name", DPO, "start_from", "the stage or folder that is trained on"),
    Renamed("ref_adapter_name", DPO, None, "the reference is where start_from starts"),
    Renamed("ref_model_init_kwargs", DPO, "model_init_kwargs"),
    Renamed("base_model_attribute_name", DPO, None, "TRL finds the model below the head"),
    Renamed("use_num_logits_to_keep", DPO, None, "TRL computes only the logits that it needs"),
    Renamed("use_logits_to_keep", DPO, None, "TRL computes only the logits that it needs"),
    Renamed("tools", DPO, None, "put a `tools` column into the data set"),
    # grpo, and what TRL's own PPO called its keys
    Renamed("use_liger_loss", (*DPO, *GRPO), "use_liger_kernel"),
    Renamed("vllm_device", GRPO, "vllm_mode", "colocate"),
    Renamed("vllm_dtype", GRPO, "dtype"),
    Renamed("vllm_max_model_len", GRPO, "vllm_max_model_length"),
    Renamed("vllm_guided_decoding_regex", GRPO, "vllm_structured_outputs_regex"),
    Renamed("vllm_enable_prefix_caching", GRPO, None, "vLLM caches prefixes by itself"),
    Renamed("wandb_log_unique_prompts", GRPO, "log_unique_prompts"),
    Renamed("reward_model_path", PPO, "reward_funcs", "[adapter:NAME]"),
    Renamed("reward_model_name_or_path", GRPO, "reward_funcs", "[adapter:NAME]"),
    Renamed("sft_model_path", PPO, "start_from", "the sft stage's name"),
    Renamed("response_length", PPO, "max_completion_length"),
    Renamed("kl_coef", PPO, "beta"),
    Renamed("init_kl_coef", PPO, "beta"),
    Renamed("cliprange", PPO, "epsilon"),
    Renamed("num_ppo_epochs", PPO, "num_iterations"),
    Renamed("ppo_epochs", PPO, "num_iterations"),
    Renamed("total_episodes", PPO, "max_steps", "optimizer steps instead of episodes"),
    # transformers
    Renamed("warmup_ratio", TRAINING, "warmup_steps"),
    Renamed("evaluation_strategy", TRAINING, "eval_strategy"),
    Renamed("no_cuda", TRAINING, "use_cpu"),
    Renamed("per_gpu_train_batch_size", TRAINING, "per_device_train_batch_size"),
    Renamed("per_gpu_eval_batch_size", ALL, "per_device_eval_batch_size"),
    Renamed(
        "gradient_checkpointing_use_reentrant",
        TRAINING,
        "gradient_checkpointing_kwargs",
        "{{use_reentrant: {value}}}",
    ),
    Renamed("group_by_length", TRAINING, "train_sampling_strategy", "group_by_length"),
    Renamed("adafactor", TRAINING, "optim", "adafactor"),
    Renamed("include_inputs_for_metrics", TRAINING, "include_for_metrics", "[inputs]"),
    Renamed("push_to_hub_model_id", TRAINING, "hub_model_id"),
    Renamed("push_to_hub_organization", TRAINING, "hub_model_id", "{value}/NAME"),
    Renamed("xpu_backend", TRAINING, "ddp_backend"),
    Renamed("torchdynamo", TRAINING, "torch_compile_backend"),
    Renamed("tpu_metrics_debug", TRAINING, "debug", "tpu_metrics_debug"),
    Renamed("sharded_ddp", TRAINING, "fsdp", "true"),
    Renamed("fsdp_min_num_params", TRAINING, "fsdp_config", "{{min_num_params: {value}}}"),
    Renamed(
        "fsdp_transformer_layer_cls_to_wrap",
        TRAINING,
        "fsdp_config",
        "{{transformer_layer_cls_to_wrap: {value}}}",
    ),
    Renamed("dispatch_batches", TRAINING, "accelerator_config", "{{dispatch_batches: {value}}}"),
    Renamed("split_batches", TRAINING, "accelerator_config", "{{split_batches: {value}}}"),
    Renamed("overwrite_output_dir", ALL, None, "say --overwrite on the command line"),
    Renamed("logging_dir", TRAINING, None, "set TENSORBOARD_LOGGING_DIR in the environment"),
    Renamed(
        "include_tokens_per_second",
        TRAINING,
        None,
        "write include_num_input_tokens_seen: non_padding for the counts",
    ),
    Renamed("fp16_backend", TRAINING, None, "write fp16: true alone"),
    Renamed("half_precision_backend", TRAINING, None, "write fp16: true or bf16: true alone"),
    Renamed("fp16_opt_level", TRAINING, None, "write fp16: true alone"),
    Renamed("save_safetensors", TRAINING, None, "weights are always saved as safetensors"),
    Renamed("jit_mode_eval", TRAINING, None, "write torch_compile: true if you want it compiled"),
    Renamed("use_ipex", TRAINING, None, "torch has what it did"),
    Renamed("use_mps_device", TRAINING, None, "an Apple GPU is used where there is one"),
    Renamed("use_legacy_prediction_loop", TRAINING, None, "there is one loop"),
    Renamed("past_index", TRAINING, None, "no model here needs it"),
    Renamed("mp_parameters", TRAINING, None, "it was for SageMaker alone"),
    Renamed("ray_scope", TRAINING, None, "start the search from Ray's side"),
    Renamed("tpu_num_cores", TRAINING, None, "the launcher says how many processes there are"),
    # what `trl sft --config` hands to Accelerate
    Renamed(
        "num_processes", ALL, None, "say it to the launcher: accelerate launch --num_processes N"
    ),
    Renamed(
        "num_machines", ALL, None, "say it to the launcher: accelerate launch --num_machines N"
    ),
    Renamed(
        "accelerate_config", ALL, None, "accelerate launch --config_file FILE -m toolkit run …"
    ),
)

# Words of other tools, for a hint where nothing is certain.
NEIGHBOURS = {
    "lora_rank": "lora_r",
    "lora_target": "lora_target_modules",
    "lora_target_linear": "lora_target_modules",
    "cutoff_len": "max_length",
    "sequence_len": "max_length",
    "seq_length": "max_length",
    "base_model": "model_name_or_path",
    "model": "model_name_or_path",
    "model_name": "model_name_or_path",
    "base_model_revision": "model_revision",
    "dataset": "dataset_name",
    "train_file": "dataset_name",
    "val_set_size": "test_split_size",
    "val_size": "test_split_size",
    "micro_batch_size": "per_device_train_batch_size",
    "batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "num_epochs": "num_train_epochs",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "optimizer": "optim",
    "sample_packing": "packing",
    "train_on_inputs": "assistant_only_loss",
    "flash_attn": "attn_implementation",
    "warmup": "warmup_steps",
    "max_grad_clip": "max_grad_norm",
    "pref_beta": "beta",
    "output": "output_dir",
    "random_seed": "seed",
    "max_new_tokens": "max_completion_length",
}


def renamed(key: str, stage: str) -> Renamed | None:
    """What became of a key that a stage does not know."""
    return next((r for r in TABLE if r.old == key and stage in r.stages), None)
