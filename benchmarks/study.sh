#!/usr/bin/env bash
# Where picking a backbone pays, and which rule picks best: every target on every backbone at width 1.0.
#
# usage: bash benchmarks/study.sh [config] [--per_class N …] [--seeds SEED …]
#
#   config       task table: cifar100 (default), digits or your own .toml file
#   --per_class  training images per class of the targets: 50 (default), others, and all
#   --seeds      seeds: 1 (default) and others
#
# The backbones have all training images and are pruned to 0.8 (SPARSITIES). Each target is trained alone, on
# every backbone, as a fine-tuned copy and as a linear probe of it; every rule scores every backbone. Decisions
# use held-out training images. Finished work is skipped, so the same command resumes. Ends with the tables of
# `python -m tools.study`. The variables in run_pickaback/config.sh can also be set in the environment.
config='' per_class=() seeds=() list=config
for argument; do
    case $argument in
        -h | --help)
            sed -n '2,/^[^#]/{/^#/!q;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        --per_class) list=per_class ;;
        --seeds) list=seeds ;;
        -*)
            echo "error: unknown option $argument" >&2
            exit 2
            ;;
        *)
            case $list in
                per_class) per_class+=("$argument") ;;
                seeds) seeds+=("$argument") ;;
                *) config=$argument ;;
            esac
            ;;
    esac
done
config=${config:-cifar100}
((${#per_class[@]})) || per_class=(50)
((${#seeds[@]})) || seeds=(1)
export PROTOCOL=heldout SPARSITIES=${SPARSITIES:-0.8} ALLOW_ACC_LOSS=1 MAX_WIDTH=1.0

source "$(dirname "${BASH_SOURCE[0]}")/../run_pickaback/python.sh"
# shellcheck source=run_pickaback/jobs.sh
source run_pickaback/jobs.sh
absolute DATA_ROOT CHECKPOINTS_ROOT LOGS_ROOT
[[ ! -f $CALLED_FROM/$config ]] || absolute config
# shellcheck source=run_pickaback/config.sh
source run_pickaback/config.sh

stage() { # NAME ARGUMENTS…
    cd "$CALLED_FROM" # variables may hold relative paths
    run_one bash "$REPOSITORY/run_pickaback/$1.sh" "$config" "${@:2}"
    cd "$REPOSITORY"
}

for seed in "${seeds[@]}"; do
    export SEED=$seed
    rich=study/$ARCH/seed$seed
    for name in baseline wo_backbone select_pruning_ratio_of_backbone; do
        RUN=$rich stage "$name"
    done
    for count in "${per_class[@]}"; do
        if [[ $count == all ]]; then
            export RUN=$rich FLEET='' TRAIN_PER_CLASS=''
        else
            export RUN=$rich-n$count FLEET=$rich TRAIN_PER_CLASS=$count
            stage baseline
            stage wo_backbone
        fi
        EXTRA_SEARCH_ARGS="--scores all" stage find_backbone
        for reuse in cpg copy probe; do
            REUSE=$reuse stage w_backbone --backbone all --target all
        done
    done
done
setup_python base
files=(--arch "$ARCH" --dataset_config "$config" --data_root "$DATA_ROOT" --checkpoints_root "$CHECKPOINTS_ROOT"
    --logs_root "$LOGS_ROOT")
run_one "$PYTHON_BIN" -m tools.study "${files[@]}" --per_class "${per_class[@]}" --seeds "${seeds[@]}"
write_report "${files[@]}" --run "study/$ARCH"
