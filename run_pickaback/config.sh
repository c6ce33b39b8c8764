# Every variable of the stages, with its default. Set one here, or for one run in the environment:
#     EPOCHS=10 JOBS=4 bash run_pickaback/baseline.sh cifar100
# A table may have defaults of its own in config_<table>.sh, which come before these.
# shellcheck shell=bash disable=SC2034

# What is run
: "${CONFIG:=digits}"            # task table: digits, cifar100, digits_docs or a .toml file of yours (first argument of a stage)
: "${TASKS:=all}"                # names, ids or ranges: 4  1-20  fish,14  all (second argument of a stage)
: "${ARCH:=lenet5}"              # architecture; across modalities perceiver_io, which the scripts of name *_MM.sh take by default
: "${SIZE:=}"                    # sizes of a Perceiver: tiny or base (also if empty), and flags, e.g. "tiny --depth 3"
: "${TEXT_ENCODER:=hash}"        # of text tasks: hash, bert-base-uncased or a local folder in the Hugging Face format
: "${SEED:=1}"                   # seed of initial weights, batch order, augmentation and mutations
: "${PROTOCOL:=published}"       # published: decisions look at the test set; heldout: at a tenth of the training images

# Training
: "${EPOCHS:=100}"               # epochs of a scratch network, and of a target at each width
: "${PRUNE_EPOCHS:=20}"          # epochs at each pruning ratio
: "${SPARSITIES:=0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9 0.95}"   # pruning ratios, run in turn
: "${BATCH_SIZE:=32}"
: "${LR:=0.01}"                  # learning rate of weights (pruning has its own, 0.001)
: "${EXTRA_ARGS:=}"              # more flags for the training commands (stages 1, 2-1, 3-2, cpg_sequence.sh), e.g. "--weight_decay 1e-4"

# Decisions
: "${ALLOW_ACC_LOSS:=0.001}"     # accuracy that a pruned network may lose against its scratch baseline (2-2, cpg_sequence.sh)
: "${BACKBONE:=farthest}"        # stage 3-1: farthest (the published rule), nearest, random, or a task's name or id
: "${CANDIDATES:=all}"           # stage 3-1: tasks that may become a backbone (run_all.sh: all means those it runs);
                                 # same, other: those of the target's modality, of the other (also: other,1-20)
: "${MAX_ITERATIONS:=}"          # stage 3-1: mutations of the probes; 0 means none; empty: 100, but none for Perceivers
: "${EXTRA_SEARCH_ARGS:=}"       # stage 3-1: more flags for the search, e.g. "--epsilon 0.05"
: "${KV_TRANSFER:=1}"            # w_backbone_MM.sh: 0 leaves the target's own K/V projection out (a control)
: "${MAX_WIDTH:=2.0}"            # stage 3-2 and cpg_sequence.sh: the widest that a network may grow

# All tasks in sequence in one network (cpg_sequence.sh; the variables above apply too)
: "${EXTRA_SEQUENCE_ARGS:=}"     # more flags, e.g. "--stop_pruning_early --keep_checkpoints"

# SPG (spg.sh; of the variables above it looks at SEED alone, of those below at all but GPUS, JOBS and RUN)
: "${SEQ:=digits_5}"             # sequence of tasks: digits_5, cifar100_10 … (first argument of spg.sh)
: "${APPR:=spg}"                 # approaches, run in turn: spg ncl one mtl ewc packnet, e.g. "one ncl spg"
: "${TRIALS:=1}"                 # seeds to run, from SEED on
: "${EXTRA_SPG_ARGS:=}"          # more flags for spg_main.py, e.g. "--lr 0.1 --dropout 0.3 0.4"

# Machine
: "${DEVICE:=auto}"              # auto, cpu, cuda or cuda:1
: "${GPUS:=}"                    # GPU indices to share the tasks among, e.g. "0 1 2 3"; empty: DEVICE decides
: "${JOBS:=}"                    # tasks side by side; empty: one for each GPU in use, else for each core
: "${THREADS:=}"                 # CPU threads of each job; empty: cores / JOBS
: "${PRECISION:=fp32}"           # fp32 or bf16
: "${PYTHON:=}"                  # interpreter that has the dependencies, used as it is; empty: .venv, made when missing

# Files (in the environment a relative path counts from where you are; here, from the repository)
: "${DATA_ROOT:=data}"
: "${CHECKPOINTS_ROOT:=checkpoints}"
: "${LOGS_ROOT:=logs}"
: "${RUN:=}"                     # name of the run; empty: <arch>/seed<seed>, with -heldout under that protocol
: "${OVERWRITE:=0}"              # 1: redo finished work
