#!/usr/bin/env bash
# A device of a federation: its own networks (stages 1 to 2-2), then its connection to the server.
#
# usage: bash run_pickaback/federated_device.sh [config] TASK [--superlink HOST:PORT]
#
#   config                 task table: digits_few (default), digits, cifar100 or your own .toml file
#   TASK                   the device's task: a name or an id
#   --superlink HOST:PORT  connect to this server, and stay until Ctrl-C; without it, only prepare the networks
#
# DATA_ROOT, CHECKPOINTS_ROOT and LOGS_ROOT are the device's own. The variables in run_pickaback/config.sh can
# also be set in the environment. docs/federation.md explains the rest.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source run_pickaback/federation.sh

SUPERLINK='' REST=()
while (($#)); do
    case $1 in
        --superlink)
            need_value "$@"
            SUPERLINK=$2
            shift
            ;;
        *) REST+=("$1") ;;
    esac
    shift
done
EXTRA=federation
REFUSALS=(--transfers no)
default_for_federation
start_stage "a device of a federation" ${REST[@]+"${REST[@]}"}
stop_on_signals
((${#TASK_NAMES[@]} == 1)) || usage_error "a device has one task: name it"
[[ -z $SUPERLINK ]] || need_certificates "keys/${TASK_NAMES[0]}"
folder=$LOGS_ROOT/device
write_device_flags "${TASK_NAMES[0]}" "$folder"
run_one "$PYTHON_BIN" -m federation.prepare "$folder"
[[ -n $SUPERLINK ]] || exit 0
flower_environment "$folder/flower"
start_device "${TASK_NAMES[0]}" "$folder" "$SUPERLINK"
echo "-- ${TASK_NAMES[0]} is connected to $SUPERLINK: Ctrl-C ends it; see $folder/supernode.log"
wait "${FLOWER[0]}"
