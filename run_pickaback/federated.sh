#!/usr/bin/env bash
# All stages with every task on a device of its own: processes that exchange networks and scores through Flower.
#
# usage: bash run_pickaback/federated.sh [config] [tasks] [--server]
#
#   config    task table: digits_few (default), digits, cifar100 or your own .toml file
#   tasks     the targets: names, ids or ranges; a single one chooses among all others
#   --server  only the server: devices are started elsewhere, by federated_device.sh
#
# Every device's files are under federation/<task> in the folders of data, checkpoints and logs. Finished work is
# skipped, so the same command resumes a stopped run. The variables in run_pickaback/config.sh can also be set
# in the environment. docs/federation.md explains the rest.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source run_pickaback/federation.sh

HERE=1 REST=()
for argument in "$@"; do
    case $argument in
        --server) HERE=0 ;;
        *) REST+=("$argument") ;;
    esac
done
EXTRA=federation
REFUSALS=(--transfers no)
default_for_federation
start_stage "all stages, each task on a device of its own" ${REST[@]+"${REST[@]}"}
stop_on_signals
settle_candidates
DEVICE_NAMES=("${TASK_NAMES[@]}")
if [[ $OWN_NETWORKS != "$TASKS" ]]; then
    words "${OWN_NETWORKS//,/ }"
    DEVICE_NAMES=("${WORDS[@]}")
fi
leave_out_backbone
KEYS=("${DEVICE_NAMES[@]/#/keys/}")
need_certificates server.crt server.key "${KEYS[@]/%/.pub}"
((HERE == 0)) || need_certificates "${KEYS[@]}"
server=$LOGS_ROOT/federation/server
words "$EXTRA_FEDERATION_ARGS"
SERVER_ARGS=("${FILE_ARGS[@]}" --logs_root "$server")
SERVER_FLAGS=("${SERVER_ARGS[@]}" --dataset "$(joined_tasks)" --devices "$(IFS=,; echo "${DEVICE_NAMES[*]}")"
    ${WORDS[@]+"${WORDS[@]}"})
((OVERWRITE == 0)) || SERVER_FLAGS+=(--overwrite)
check_server_flags "${SERVER_FLAGS[@]}"
[[ -z $FEDERATION_PORT ]] || ! answers "$FEDERATION_PORT" ||
    die "FEDERATION_PORT=$FEDERATION_PORT is in use: choose another port, or end what listens on it"

prepare_all() { # every device, JOBS at a time: its data, and its own networks
    local task root folder
    local -A process=()
    local -a failed=()
    run_one "$PYTHON_BIN" -m federation.own_data --dataset_config "$CONFIG" --data_root "$DATA_ROOT" \
        --dataset "$(IFS=,; echo "${DEVICE_NAMES[*]}")" --to "$DATA_ROOT/federation" \
        ${PUBLIC_PROBES:+--public_probes "$PUBLIC_PROBES"}
    export TASKS_SIDE_BY_SIDE=1
    for task in "${DEVICE_NAMES[@]}"; do
        root=federation/$task
        folder=$LOGS_ROOT/$root/device
        write_device_flags "$task" "$folder" --data_root "$DATA_ROOT/$root" \
            --checkpoints_root "$CHECKPOINTS_ROOT/$root" --logs_root "$LOGS_ROOT/$root"
        while (($(jobs -rp | wc -l) >= JOBS)); do
            wait -n || true
        done
        echo "-- device $task: its own networks; log: $folder/prepare.log"
        OMP_NUM_THREADS=$THREADS ${WITH_PARENT[@]+"${WITH_PARENT[@]}"} "$PYTHON_BIN" -m federation.prepare \
            "$folder" >>"$folder/prepare.log" 2>&1 &
        process[$task]=$!
    done
    for task in "${DEVICE_NAMES[@]}"; do
        wait "${process[$task]}" || failed+=("$task")
    done
    ((${#failed[@]} == 0)) || die "devices that could not be prepared: ${failed[*]}: see their logs;" \
        "once that is corrected, $(resuming)"
}

((HERE == 0)) || prepare_all
mkdir -p "$server"
flower_environment "$server/flower"
port=$FEDERATION_PORT
[[ -n $port ]] || port=$(free_ports 1)
((HERE == 0)) || rm -f "$server"/superlink.db* # devices elsewhere keep their ids in it; those here start anew
start_superlink "$server" "$([[ $HERE == 1 ]] && echo 127.0.0.1 || echo 0.0.0.0)" "$port"
connect_flwr "$server" "$port"
register_devices "${DEVICE_NAMES[@]}"
if ((HERE)); then
    for task in "${DEVICE_NAMES[@]}"; do
        start_device "$task" "$LOGS_ROOT/federation/$task/device" "127.0.0.1:$port"
    done
    echo "-- ${#DEVICE_NAMES[@]} devices connect to port $port; logs: $LOGS_ROOT/federation/<task>/device/supernode.log"
fi
write_lines "$server/server.flags" "${SERVER_FLAGS[@]}"
run_server "$server"
"$PYTHON_BIN" -m federation.table "${SERVER_ARGS[@]}" --dataset "$(joined_tasks)"
