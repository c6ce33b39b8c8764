# Every variable of the stages, with its default. Edit it here, or set it for one command:
#     EPOCHS=10 JOBS=4 bash run_pickaback/baseline.sh cifar100
# A table's own defaults, in config_<table>.sh, take precedence over these. A stage refuses a variable in the
# environment if neither it nor the rest of its run acts on it.
# shellcheck shell=bash disable=SC2034

# tasks and network
: "${CONFIG:=digits_few}"    # task table: digits_few, digits, cifar100, digits_docs or your own .toml file (1st argument)
: "${TASKS:=all}"            # names, ids or ranges: 4  1-20  fish,14  all (2nd argument)
: "${ARCH:=lenet5}"          # or a file's function, my_net.py:my_net (docs/usage.md). *_MM.sh default to
                             # perceiver_io; spg.sh to alexnet, unless set in the environment
: "${SIZE:=}"                # Perceivers: tiny, base (if empty) and single sizes, e.g. "tiny --depth 3"
: "${TEXT_ENCODER:=hash}"    # text tasks: hash, bert-base-uncased or a local folder in Hugging Face format
: "${SEED:=1}"               # of initial weights, batch order, augmentation and mutations
: "${PRESET:=}"              # published: PROTOCOL, BACKBONE, FREED and PROBES as the published code has them
: "${SEEDS:=}"              # several seeds, in turn: "1 2 3" (instead of SEED); RUN may then contain {seed}
: "${PROTOCOL:=published}"   # published: decisions use the test set; heldout: a tenth of the training images
: "${TRAIN_PER_CLASS:=}"     # training samples drawn from each class, or all; empty: as the table says, else all

# training
: "${EPOCHS:=100}"           # scratch network, and target at each width; the learning-rate drops scale with it
                             # (at 50 % and 80 %; published: fixed at epochs 50 and 80 of 100)
: "${PRUNE_EPOCHS:=20}"      # per pruning ratio
: "${SPARSITIES:=0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9 0.95}"   # pruning ratios, in turn
: "${BATCH_SIZE:=32}"
: "${LR:=0.01}"              # of the weights; while pruning it is 0.001
: "${EXTRA_ARGS:=}"          # more flags for training (stages 1, 2-1, 3-2, cpg_sequence.sh): "--weight_decay 1e-4"

# decisions
: "${FLEET:=}"               # run whose networks are candidates and backbones; empty: this run. If set, no target's
                             # own network is pruned
: "${FREED:=zero}"           # 3-2, cpg_sequence.sh: weights that pruning freed start at zero (published), are all
                             # drawn again (random), or only in units that no earlier weight enters (dead)
: "${REUSE:=cpg}"            # w_backbone.sh: cpg; or a control: copy (fine-tune a dense copy of the backbone's
                             # network), probe (a linear classifier on its frozen features)
: "${ALLOW_ACC_LOSS:=0.001}" # 2-2, cpg_sequence.sh: accuracy that pruning may lose against the scratch baseline
# 3-1: farthest (published), nearest, random, another rule (rsa cka leep nce logme hscore parc knn logistic accuracy
# room race: docs/rules.md), or a task's name or id. A rule by labels, such as logme, cannot compare candidates that
# read another modality, as those of Perceivers may. federated*.sh default to farthest, PROBES=noise and
# MAX_ITERATIONS=0 unless they are set in the environment.
[[ $ARCH != perceiver* ]] || : "${BACKBONE:=farthest}"
: "${BACKBONE:=logme}"       # picks better than farthest at 50 images per class (docs/study.md)
: "${CANDIDATES:=all}"       # 3-1: tasks that may become a backbone: ids, names, same or other (modality), e.g.
                             # other,1-20; in run_all*.sh with several tasks, all means the tasks of the run
: "${PROBES:=own}"           # 3-1: what networks are compared on: validation samples of both tasks (own, published),
                             # samples of PUBLIC_PROBES (public), or noise; with the latter two no sample is sent
: "${PUBLIC_PROBES:=}"       # 3-1: pool of PROBES=public: a task of the table, or a folder of images, such as ./pool
: "${MAX_ITERATIONS:=}"      # 3-1: mutations of the probes; empty: 100, and 0 for Perceivers
: "${EXTRA_SEARCH_ARGS:=}"   # 3-1: more flags for the search: "--epsilon 0.05"
: "${CONTROL:=0}"            # run_all*.sh: 1 adds the controls, as --control does
: "${KV_TRANSFER:=1}"        # w_backbone_MM.sh: 0 skips the K/V transfer (a control)
: "${MAX_WIDTH:=2.0}"        # 3-2, cpg_sequence.sh: maximum width multiplier
: "${EXTRA_SEQUENCE_ARGS:=}" # cpg_sequence.sh: more flags: "--stop_pruning_early --keep_checkpoints"

# SPG (spg.sh; it also acts on ARCH, SEED, SEEDS, OVERWRITE, RUN for a single approach, the roots, and the
# machine's variables except GPUS and JOBS)
: "${SEQ:=digits_5}"         # sequence of tasks: digits_5, cifar100_10 … or your own .toml file (1st argument)
: "${APPR:=spg}"             # approaches, in turn (`one` first): spg ncl one mtl ewc packnet er lwf
: "${TRIALS:=1}"             # number of seeds, starting at SEED
: "${EXTRA_SPG_ARGS:=}"      # more flags for spg_main.py: "--lr 0.1 --dropout 0.3 0.4"

# federated.sh, federated_device.sh (docs/federation.md)
: "${EXTRA_FEDERATION_ARGS:=}" # more flags for the server: "--deadline 60 --wait 30"
: "${FEDERATION_PORT:=}"     # of the server; empty: a free one
: "${CERTIFICATES:=}"        # folder of certificates and keys: TLS and known devices only; empty: no encryption
: "${MAX_MEGABYTES:=256}"    # a device accepts messages up to this size

# machine
: "${LAUNCHER:=local}"       # local, or slurm: tasks become jobs of a Slurm cluster (docs/clusters.md)
: "${SLURM_ARGS:=}"          # of sbatch: "--partition gpu --account mine --time 4:00:00 --gpus-per-task 1"
: "${DEVICE:=auto}"          # auto, cpu, cuda or cuda:1
: "${GPUS:=}"                # GPU indices to spread the tasks over: "0 1 2 3"; empty: use DEVICE
: "${GPUS_PER_TASK:=1}"      # GPUs that share every batch of a task in training (docs/clusters.md): DEVICE and those
                             # after it, or as many of GPUS; with DEVICE=cpu, processes
: "${JOBS:=}"                # tasks in parallel; empty: one per GPU in use, else one per core (slurm: no limit)
: "${THREADS:=}"             # CPU threads per job; empty: cores / JOBS (slurm: those of the allocation)
: "${PRECISION:=fp32}"       # fp32, tf32 or bf16
: "${NONDETERMINISTIC:=0}"   # 1: faster, nondeterministic GPU kernels
: "${PYTHON:=}"              # interpreter with the dependencies installed; empty: .venv, created when missing

# files (a relative path in the environment starts at your folder; one in this file at the repository)
: "${DATA_ROOT:=data}"
: "${CHECKPOINTS_ROOT:=checkpoints}"
: "${LOGS_ROOT:=logs}"
: "${LOG_TO:=}"              # experiment trackers: "tensorboard wandb mlflow"; each must be installed
: "${RUN:=}"                 # name of the run; empty: <arch>/seed<seed>[-n<TRAIN_PER_CLASS>][-heldout]; {seed}: the seed
: "${REPORT:=1}"             # run_all*.sh, cpg_sequence.sh, spg.sh: write the report as an HTML file, too; 0: only the table
: "${OVERWRITE:=0}"          # 1: redo finished work
