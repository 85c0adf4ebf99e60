"""What other programs call things: their names of settings, switches and values, with ours.

From Lightning, transformers and TRL, timm, nanoGPT and litgpt, fairseq, Keras, W&B and argparse. Names are compared without
case, - and _, so batchSize, batch-size and BATCH_SIZE are one. Each advice is tried before it is printed: see advice.py.
"""

import re
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

NAMES = {  # our key -> what others call it
    "lr": "learning_rate max_lr base_lr peak_lr initial_lr init_lr eta",
    "optim.weight_decay": "wd decay l2 l2_reg weight_decay_rate",
    "steps": (
        "max_steps num_steps n_steps total_steps train_steps training_steps num_train_steps max_train_steps max_update iters "
        "max_iters num_iters iterations num_iterations max_iterations train_iters"
    ),
    "batch_size": "bs batch batchsize train_batch_size per_device_train_batch_size per_device_batch_size micro_batch_size "
    "global_batch_size mini_batch_size minibatch_size batch_size_train max_sentences bsz",
    "eval_every": (
        "eval_steps eval_interval eval_freq val_every val_interval val_freq val_check_interval evaluate_every validate_every "
        "validate_interval test_every validation_steps"
    ),
    "trainer.log_every": "logging_steps log_interval log_freq log_steps log_every_n_steps print_every print_freq disp_freq",
    "trainer.clip_norm": (
        "grad_clip max_grad_norm gradient_clip_val gradient_clip clip clip_grad clip_grad_norm clipnorm gradient_clipping "
        "max_norm"
    ),
    "trainer.grad_accum": "gradient_accumulation_steps accumulate_grad_batches accumulation_steps grad_accum_steps update_freq "
    "gradient_accumulation accum_iter",
    "trainer.checkpoint_activations": "gradient_checkpointing activation_checkpointing grad_checkpointing grad_checkpoint",
    "trainer.compile": "torch_compile jit_compile",
    "trainer.device": "accelerator device_type map_location",
    "trainer.ema": "ema_decay model_ema_decay",
    "trainer.overfit": "overfit_batches",
    "trainer": "strategy distribution_strategy parallelism",
    "callbacks.checkpoint.every": (
        "save_steps save_interval save_every save_freq checkpoint_every checkpoint_interval ckpt_every every_n_train_steps"
    ),
    "callbacks.checkpoint.keep_last": "save_total_limit keep_checkpoints num_checkpoints max_to_keep keep_last_epochs",
    "callbacks.checkpoint.keep_best": "save_top_k checkpoint_hist keep_best_checkpoints",
    "callbacks.early_stop.patience": (
        "patience early_stopping_patience early_stop_patience es_patience stop_patience patience_epochs"
    ),
    "callbacks.time_limit.seconds": "max_time time_limit max_seconds max_train_seconds train_seconds",
    "schedule.warmup": "warmup_steps num_warmup_steps warmup_iters warmup_updates lr_warmup warmup_epochs",
    "schedule.floor": "min_lr_ratio final_lr_ratio lr_floor",
    "schedule": "scheduler sched lr_scheduler lr_schedule lr_scheduler_type lr_decay_style decay_lr",
    "model.dim": "hidden_size hidden_dim d_model model_dim n_embd embed_dim embedding_dim emb_dim width hidden_units "
    "decoder_embed_dim",
    "model.depth": "layers n_layer n_layers num_layers nlayers num_hidden_layers num_blocks n_blocks decoder_layers",
    "model.heads": "n_head n_heads num_heads nhead nheads num_attention_heads attention_heads decoder_attention_heads",
    "model.kv_heads": "n_kv_heads num_kv_heads num_key_value_heads n_query_groups",
    "model.ffn_dim": "d_ff intermediate_size dim_feedforward mlp_dim ffn_size ff_dim feedforward_dim decoder_ffn_embed_dim",
    "model.activation": "activation_fn act_fn act_layer hidden_act nonlinearity",
    "model.dropout": "dropout_rate drop_rate drop p_dropout dropout_prob hidden_dropout hidden_dropout_prob attention_dropout "
    "attn_dropout resid_dropout resid_pdrop",
    "model.tie_embeddings": "tie_weights tie_word_embeddings weight_tying share_embeddings",
    "model.init_std": "initializer_range init_range init_scale",
    "model.linear.weight_bits": "bits n_bits num_bits quant_bits wbits w_bits",
    "model.linear.activation_bits": "act_bits abits a_bits",
    "model.linear.granularity": "group_size groupsize",
    "model": "net network arch architecture model_name model_arch model_type backbone",
    "data.path": "data_dir data_path data_root dataset_dir dataset_path data_folder root train_data train_data_path train_file "
    "train_files train_path training_data input_file input_dir corpus text_file",
    "data.seq_len": (
        "block_size context_length context_len context_size ctx_len max_seq_len max_seq_length seq_length sequence_length "
        "max_length max_len n_ctx n_positions tokens_per_sample max_position_embeddings window_size"
    ),
    "data.val_fraction": (
        "val_split valid_split validation_split val_size valid_size val_ratio val_frac val_percent dev_split eval_split "
        "validation_fraction validation_size"
    ),
    "data.test_fraction": "test_split test_size test_ratio test_frac",
    "data.train_fraction": "train_split train_size train_ratio train_frac",
    "data": "dataset datasets dataset_name task",
    "tokenizer": "tokenizer_type tokenization vocab",
    "tracker": "logger loggers tracking report_to log_to log_with logging_backend",
    "loss": "criterion loss_fn loss_function objective loss_type",
    "optim": "optimizer optimiser opt optimizer_name optimizer_type optim_name opt_type algorithm",
    "monitor": "metric early_stopping_metric early_stopping_monitor monitor_metric metric_for_best_model eval_metric "
    "best_checkpoint_metric",
    "name": "experiment_name exp_name run_name project project_name job_name study wandb_project wandb_run_name wandb_name "
    "run_id",
    "experiment": "exp preset recipe",
    "out": "output_dir output out_dir save_dir save_path log_dir logdir logging_dir results_dir run_dir work_dir workdir "
    "default_root_dir output_path",
    "resume": "resume_from resume_from_checkpoint ckpt_path ckpt load load_from load_checkpoint load_ckpt load_path restore "
    "restore_file checkpoint checkpoint_path init_from continue_from",
    "seed": "random_seed manual_seed rng_seed random_state seed_everything global_seed torch_seed",
    "precision": "dtype amp mixed_precision torch_dtype compute_dtype",
    "target": "target_value stop_at target_metric",
    "hydra.sweeper.n_trials": "trials num_trials num_samples max_trials run_cap",
    "hydra.sweeper.workers": "n_jobs num_parallel_trials max_concurrent_trials parallel_trials",
    "hydra/sweeper/sampler": "sampler",
    "hydra/sweeper/pruner": "pruner",
    "hydra/sweeper": "sweeper",
    "hydra/launcher": "launcher",
    "hydra.verbose": "log_level loglevel",
}

RUN = "python train.py"
GPU = "a GPU is used where there is one; several: torchrun --nproc-per-node N train.py trainer=ddp"
LOADING = "there are no loader workers: a batch is read by number, in the step"
RESUMED = "from the weights of a run: resume=RUN resume.weights_only=true"
PRETRAINED = "a folder of transformers: model=hub model.folder=FOLDER; a run of yours: resume=RUN resume.weights_only=true"
TOKENIZER = "one of Hugging Face: data=text tokenizer=folder data.tokenizer.path=FOLDER; others: tokenizer=bytes, tokenizer=bpe"
PRESET = "options are chosen by name: GROUP=OPTION; several at once are a preset: experiment=NAME (conf/experiment/NAME.yaml)"
TRAINS = "train.py trains and evaluates: leave it out"
OWN_FOLDER = "each run has a new folder, and nothing is overwritten: leave it out"
SAME_BITS = "the same seed gives the same bits: leave it out"
RESULTS = "train.py trains and evaluates: what a run reached stands in its summary.json"
TEXT = "text of a trained run: python -m research.generate RUN"
EXPORT = "a file for other programs: python -m research.export RUN --format NAME"
BETAS = "Adam's two are optim.base.betas=[0.9,0.98]"
ANSWERS = {  # what is right -> what others call something that has no key of its own
    GPU: "gpus gpu_ids gpu_id devices num_gpus n_gpus ngpu nproc_per_node num_processes world_size num_nodes distributed "
    "multi_gpu local_rank rank cuda_visible_devices data_parallel",
    LOADING: "num_workers n_workers dataloader_num_workers num_proc preprocessing_num_workers pin_memory persistent_workers "
    "prefetch_factor dataloader_pin_memory",
    f"{LOADING}; processes of a sweep: -m hydra.sweeper.workers=N": "workers",
    SAME_BITS: "deterministic cudnn_deterministic full_determinism benchmark cudnn_benchmark reproducible",
    f"optim=sgd and optim=muon have optim.base.momentum=0.9; {BETAS}": "momentum",
    BETAS: "beta beta1 beta2 betas adam_beta1 adam_beta2 adam_betas opt_betas",
    "give +optim.base.eps=1e-8": "eps epsilon adam_eps adam_epsilon opt_eps",
    "warm-up is in steps: schedule.warmup=N": "warmup_ratio warmup_frac warmup_fraction warmup_proportion",
    "a share of lr: schedule=cosine or schedule=wsd, and schedule.floor=0.1": "min_lr lr_min eta_min final_lr end_lr",
    "a schedule ends with the run: schedule=cosine, or schedule=wsd with schedule.decay=0.5, the share of the steps": (
        "lr_decay lr_decay_iters lr_decay_steps decay_steps decay_rate gamma step_size milestones t_max num_cycles"
    ),
    TOKENIZER: "tokenizer_name tokenizer_path tokenizer_dir tokenizer_file tokenizer_name_or_path",
    "the data give it; of a tokenizer of your own: data=text tokenizer=bpe data.tokenizer.vocab_size=N": "vocab_size",
    PRETRAINED: "pretrained from_pretrained pretrained_model pretrained_path hf_model base_model model_name_or_path model_path "
    "model_id model_dir init_weights",
    RESUMED: "finetune fine_tune finetune_from load_weights weights weights_path initial_checkpoint",
    PRESET: "config config_file config_path config_name cfg conf yaml settings",
    TRAINS: "do_train do_eval train_model training validate run_validation",
    RESULTS: "do_predict predict eval_only test_only evaluate inference mode",
    TEXT: "generate prompt sample max_new_tokens temperature top_k top_p",
    EXPORT: "export push_to_hub hub_model_id save_model onnx gguf safetensors",
    OWN_FOLDER: "overwrite overwrite_output_dir overwrite_existing force exist_ok clobber",
    "evaluation takes batch_size= too": (
        "eval_batch_size val_batch_size test_batch_size batch_size_eval per_device_eval_batch_size valid_batch_size"
    ),
    "validation is a share of the data that data.path names: data=text data.val_fraction=0.1": (
        "val_data val_file validation_file valid_file eval_file val_path test_file test_data eval_data"
    ),
    "a run is as long as steps=N; to learn few samples by heart: trainer=overfit": (
        "max_train_samples max_samples max_examples limit_train_batches limit_val_batches subset max_tokens train_tokens"
    ),
    "samples come in an order of their own, by seed=N": "shuffle shuffle_data drop_last sampler_seed",
    "end without progress: callbacks.early_stop.patience=5 (evaluations); at a value: target=0.9": (
        "early_stopping early_stop use_early_stopping"
    ),
    "a run has a name: name=NAME": "tags tag notes note comment group version wandb_entity entity",
    "each data set names its metrics; runs are compared by monitor=val/acc": "metrics compute_metrics",
    "precision=fp16 scales the loss by itself": "loss_scale grad_scaler loss_scaling",
    "the best checkpoint is always kept": "load_best_model_at_end save_best save_best_only",
    "give callbacks.checkpoint.every=null": "enable_checkpointing save_checkpoints no_save save",
    "give optim=grokfast optim.alpha=0.9": "grokfast_alpha",
    "give optim=grokfast optim.lamb=2": "grokfast_lamb grokfast_lambda",
    "several seeds are a sweep: -m seed=0,1,2": "repeats num_seeds n_seeds seeds",
    "give callbacks.time_limit.seconds=3600": "max_hours max_minutes timeout walltime",
    "a run is counted in optimizer steps: give steps=N": (
        "epoch max_epochs num_epochs n_epochs nb_epochs num_train_epochs train_epochs total_epochs epochs"
    ),
}
FLAGS = {  # what switches something on, and off where that is not the default -> what others call the switch
    ("precision=fp16", "precision=fp32"): "fp16 half use_fp16 use_amp use_half",
    ("precision=bf16", "precision=fp32"): "bf16 bfloat16 use_bf16",
    ("precision=fp32", "precision=bf16"): "fp32 full_precision",
    ("trainer.device=auto", "trainer.device=cpu"): "cuda use_cuda gpu use_gpu mps",
    ("trainer.device=cpu", ""): "no_cuda use_cpu cpu no_gpu cpu_only force_cpu",
    ("trainer=debug", ""): "debug fast_dev_run dry_run dryrun smoke smoke_test test_run sanity_check quick",
    ("hydra.verbose=true", ""): "verbose v",
    ("~callbacks.console", ""): "quiet q silent disable_tqdm no_progress no_progress_bar",
    ("", "~callbacks.console"): "progress progress_bar enable_progress_bar tqdm",
    ("tracker=wandb", ""): "wandb use_wandb wandb_log with_wandb",
    ("tracker=tensorboard", ""): "tensorboard tb use_tensorboard",
    ("tracker=mlflow", "tracker=none"): "mlflow use_mlflow",
    ("tracker=jsonl", ""): "no_wandb no_mlflow no_log no_logging no_tracking no_logger offline",
    ("trainer=ddp", ""): "ddp",
    ("trainer=fsdp", ""): "fsdp",
    ("trainer.ema=0.999", ""): "ema use_ema model_ema",
    ("trainer=overfit", ""): "overfit_batch overfit_one_batch",
    ("linear=bitnet", "linear=full"): "quantize quantized quantization ternary bitnet bitlinear use_bitnet qat",
    ("optim=grokfast", "optim=adamw"): "grokfast use_grokfast",
    ("resume=auto", ""): "continue auto_resume resume_training",
    ("resume.weights_only=true", ""): "weights_only",
    ("-m", ""): "sweep_mode hpo tune hyperparameter_search",
}
COMMANDS = {  # what is right -> a word alone, as of a program with commands
    f"{RUN} trains already: leave it out": "train fit run start main",
    f"{RUN} --help": "help usage options list info",
    "python -m pip show grokbit": "version",
    f"{RUN} resume=auto": "resume continue",
    f"a sweep: {RUN} -m lr=1e-3,3e-4": "sweep search tune hpo",
    RESULTS: "test validate eval evaluate predict",
    TEXT: "generate sample chat",
    EXPORT: "export convert",
    "python -m research.report SWEEP": "report plot results",
    "make ui": "ui mlflow dashboard",
    f"{RUN} trainer=debug": "debug",
}
VALUES = {  # the last part of a key -> our value -> what others call it
    "device": {
        "auto": "cuda cuda:0 gpu mps 0 1 true",
    },
    "precision": {
        "fp16": "16 fp16mixed 16mixed float16 half f16 true",
        "bf16": "bf16mixed bf16true bfloat16 bfloat bf",
        "fp32": "32 32true float32 float full f32 single false",
    },
    "monitor": {
        "val/acc": "acc accuracy valacc valaccuracy val/accuracy evalaccuracy validacc eval/acc",
        "val/loss": "loss valloss evalloss validloss eval/loss val/ppl perplexity ppl validationloss",
        "val/bpb": "bpb valbpb bitsperbyte",
    },
    "schedule": {
        "cosine": "cosinewithwarmup warmupcosine cosineannealing cosineannealinglr coslr cos cosinedecay",
        "constant": "none constantwithwarmup const fixed",
        "wsd": "linear linearwithwarmup warmupstabledecay trapezoidal linearlr warmuplinear",
    },
    "optim": {
        "adamw": "adamwtorch adamwtorchfused fusedadamw adamwhf adamw8bit pagedadamw torch.optim.adamw",
        "adam": "torch.optim.adam adamtorch",
        "sgd": "torch.optim.sgd nesterov",
        "grokfast": "grokfastema emagrokfast",
    },
    "tracker": {
        "none": "null false off",
        "jsonl": "json csv file",
    },
    "trainer": {
        "debug": "fastdevrun",
        "ddp": "ddpspawn",
        "fsdp": "fsdp2",
        "default": "auto",
    },
    "data": {
        "text": "tinyshakespeare shakespeare wikitext openwebtext",
        "digits": "mnist sklearndigits",
    },
    "model": {
        "transformer": "gpt gpt2 nanogpt llama lm",
        "bitnet": "bitnetb1.58 bitnet1.58 bitnetb158 ternary",
    },
    "activation": {
        "silu": "swish swiglu",
        "relu2": "squaredrelu relusquared",
    },
    "loss": {
        "classification": "crossentropy crossentropyloss ce nll",
        "regression": "mse mseloss l2 mae l1",
    },
}


def squash(name: str) -> str:
    """Return a name without what people write differently: case, - and _."""
    return re.sub(r"[-_\s]", "", name).lower()


def index(table: Mapping[T, str]) -> dict[str, T]:
    """Return a table by each of its words, squashed."""
    return {squash(word): ours for ours, words in table.items() for word in words.split()}


HABITS, SWITCHES, EXPLANATIONS, PROGRAM_COMMANDS = index(NAMES), index(FLAGS), index(ANSWERS), index(COMMANDS)
OUR_VALUES = {key: index(values) for key, values in VALUES.items()}
FALSE, TRUE = ("false", "0", "no", "off", "null", "none", "n"), ("true", "1", "yes", "on", "y", "t")


def find_habit(key: str) -> str:
    """Return our key for what others call the last part of a key; empty where it is not known."""
    return HABITS.get(squash(key.rpartition(".")[2]), "")


def answer_habit(key: str, value: str) -> str:
    """Return the advice about a switch of others, or about what has no key of ours; empty where it is not known."""
    word = squash(key.rpartition(".")[2])
    if word in SWITCHES:
        fix = SWITCHES[word][squash(value) in FALSE]
        return f"did you mean: {fix} ?" if fix else f"leave out {key}={value}"
    return EXPLANATIONS.get(word, "")
