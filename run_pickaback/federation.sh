# What the scripts of a federation share: Flower's processes, and how they end. Sourced.
# shellcheck shell=bash

FLOWER=() # processes to end, by id

absolute CERTIFICATES
[[ $MAX_MEGABYTES =~ ^[1-9][0-9]{0,5}$ ]] || die "MAX_MEGABYTES=$MAX_MEGABYTES must be a whole number from 1 to 999999"
[[ -z $FEDERATION_PORT ]] || { [[ $FEDERATION_PORT =~ ^[1-9][0-9]{0,4}$ ]] && ((FEDERATION_PORT <= 65535)); } ||
    die "FEDERATION_PORT=$FEDERATION_PORT must be a port from 1 to 65535"

need_certificates() { # FILE…: refuse a folder of certificates that lacks one of them
    local file
    [[ -n $CERTIFICATES ]] || return 0
    for file in ca.crt "$@"; do
        [[ -s $CERTIFICATES/$file ]] ||
            die "CERTIFICATES=$CERTIFICATES has no $file: make it with run_pickaback/federation_keys.sh"
    done
}

flower_environment() { # FOLDER: environment of Flower's processes, whose own files go to FOLDER
    local bin
    bin=$(cd "$(dirname "$(command -v "$PYTHON_BIN")")" && pwd)
    export PATH=$bin:$PATH # Flower finds its other programs by name
    export PYTHONPATH=$REPOSITORY
    export FLWR_HOME=$1
    export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_SUPEREXEC_TASK_POLL_INTERVAL=0.2
    export OMP_NUM_THREADS=$THREADS
    mkdir -p "$FLWR_HOME"
}

free_ports() { # NUMBER: print so many free ports of this machine
    "$PYTHON_BIN" -c '
import socket, sys
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(held.getsockname()[1] for held in sockets))
' "$1"
}

answers() { # PORT: whether something listens on it on this machine
    (exec {probe}<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

start_flower() { # LOG COMMAND…: start one of Flower's processes in the background
    "${@:2}" >>"$1" 2>&1 &
    FLOWER+=($!)
}

descendants() { # PROCESS…: print them and all that they started
    local process
    for process in "$@"; do
        echo "$process"
        # shellcheck disable=SC2046
        descendants $(pgrep -P "$process" || true)
    done
}

# A SuperLink or SuperNode that ends leaves its flower-superexec behind, which runs the apps. All are frozen before
# they are ended, and a superexec is killed: it would start another app meanwhile, which nobody would end.
stop_flower() {
    local -a all=() now left own=(${FLOWER[@]+"${FLOWER[@]}"})
    local process attempt
    ((${#FLOWER[@]})) || return 0
    mapfile -t now < <(descendants "${FLOWER[@]}")
    until [[ "${now[*]}" == "${all[*]-}" ]]; do
        all=("${now[@]}")
        kill -STOP "${all[@]}" 2>/dev/null || true
        mapfile -t now < <(descendants "${FLOWER[@]}")
    done
    FLOWER=()
    for process in "${all[@]}"; do
        [[ $(ps -o args= -p "$process" 2>/dev/null) != *flower-superexec* ]] || kill -KILL "$process" 2>/dev/null || true
    done
    kill -TERM "${all[@]}" 2>/dev/null || true
    kill -CONT "${all[@]}" 2>/dev/null || true
    for attempt in {1..50}; do
        left=()
        for process in "${all[@]}"; do
            ! kill -0 "$process" 2>/dev/null || left+=("$process")
        done
        ((${#left[@]})) || break
        sleep 0.2
        ((attempt < 40)) || kill -KILL "${left[@]}" 2>/dev/null || true
    done
    wait "${own[@]}" 2>/dev/null || true # not for the others: jobs.sh stops them
}

stop_on_signals() { # end what was started, however this script ends
    trap 'stop_flower; stop 1' HUP
    trap 'stop_flower; stop 2' INT
    trap 'stop_flower; stop 15' TERM
    trap 'STATUS=$?; set +e; stop_flower; (exit $STATUS); end_stage' EXIT
}

# The general defaults need all images, and both networks, in one place; a rule by labels sends every candidate's
# network to every target.
default_for_federation() {
    [[ -n ${FROM_ENVIRONMENT[BACKBONE]:-} ]] || BACKBONE=farthest
    [[ -n $MAX_ITERATIONS ]] || MAX_ITERATIONS=0
    [[ -n ${FROM_ENVIRONMENT[PROBES]:-} ]] || PROBES=noise
}

# A device

write_lines() { # FILE LINE…
    printf '%s\n' "${@:2}" >"$1"
}

# write_device_flags TASK FOLDER [ROOT FLAG…]: the flags of its stages, for federation/prepare.py and device.py;
# flags of other folders than those of this script follow.
write_device_flags() {
    local -a choice=(--select "$BACKBONE")
    local -a own=(--dataset "$1" "${@:3}")
    local -a machine=("${own[@]}" --device "$DEVICE" --threads "$THREADS")
    local -a ratios more
    ! backbone_is_a_task || choice=(--backbone "$BACKBONE")
    [[ $BACKBONE != race ]] || choice+=(--batch_size "$BATCH_SIZE" --lr "$LR" --freed "$FREED")
    words "$SPARSITIES"
    ratios=(--target_sparsity "${WORDS[@]}")
    words "$EXTRA_SEARCH_ARGS"
    more=(${SEARCH_ARGS[@]+"${SEARCH_ARGS[@]}"} ${WORDS[@]+"${WORDS[@]}"})
    mkdir -p "$2"
    write_lines "$2/baseline.flags" "${TRAINING_ARGS[@]}" "${machine[@]}"
    write_lines "$2/own_network.flags" "${TRAINING_ARGS[@]}" "${machine[@]}" --mode finetune prune \
        --prune_epochs "$PRUNE_EPOCHS" "${ratios[@]}"
    write_lines "$2/ratio.flags" "${WRITING_ARGS[@]}" "${own[@]}" --allow_acc_loss "$ALLOW_ACC_LOSS" "${ratios[@]}"
    write_lines "$2/search.flags" "${COMMON_ARGS[@]}" "${machine[@]}" "${choice[@]}" "${more[@]}"
    write_lines "$2/training.flags" "${TRAINING_ARGS[@]}" "${machine[@]}" --mode finetune \
        --max_allowed_network_width_multiplier "$MAX_WIDTH" --freed "$FREED"
}

start_device() { # TASK FOLDER SUPERLINK: connect a device that is prepared
    local port
    local -a security=(--insecure)
    if [[ -n $CERTIFICATES ]]; then
        security=(--root-certificates "$CERTIFICATES/ca.crt" --auth-supernode-private-key "$CERTIFICATES/keys/$1")
    fi
    port=$(free_ports 1)
    FLWR_HOME=$2/flower start_flower "$2/supernode.log" flower-supernode "${security[@]}" --superlink "$3" \
        --host 127.0.0.1 --port "$port" \
        --node-config "device=\"$2\" max-megabytes=$MAX_MEGABYTES shares-images=$([[ $PROBES == own ]] && echo true || echo false)"
}

# The server

check_server_flags() { # FLAG…: refuse wrong ones before anything starts
    run_one "$PYTHON_BIN" -c '
import sys
from federation.flags import parse_server
from utils import errors
errors.run(lambda _: parse_server(sys.argv[1:]))
' "$@" || die "the server refuses its flags: see the line above, and correct EXTRA_FEDERATION_ARGS"
}

start_superlink() { # FOLDER HOST PORT
    local -a security=(--insecure)
    if [[ -n $CERTIFICATES ]]; then
        security=(--ssl-ca-certfile "$CERTIFICATES/ca.crt" --ssl-certfile "$CERTIFICATES/server.crt"
            --ssl-keyfile "$CERTIFICATES/server.key" --enable-supernode-auth)
    fi
    start_flower "$1/superlink.log" flower-superlink "${security[@]}" --host "$2" --port "$3" \
        --database "$1/superlink.db" --disable-runtime-dependency-installation
    until answers "$3"; do
        kill -0 "${FLOWER[-1]}" 2>/dev/null || break
        sleep 0.2
    done
    kill -0 "${FLOWER[-1]}" 2>/dev/null || die "the SuperLink ended: see $1/superlink.log"
}

connect_flwr() { # FOLDER PORT: tell the command flwr where the SuperLink is
    {
        echo '[superlink]'
        echo 'default = "here"'
        echo '[superlink.here]'
        echo "address = \"127.0.0.1:$2\""
        if [[ -n $CERTIFICATES ]]; then
            echo "root-certificates = \"$CERTIFICATES/ca.crt\""
        else
            echo 'insecure = true'
        fi
    } >"$FLWR_HOME/config.toml"
}

register_devices() { # TASK…: let the devices with these keys connect
    local task
    [[ -n $CERTIFICATES ]] || return 0
    for task in "$@"; do
        flwr supernode register "$CERTIFICATES/keys/$task.pub" here >>"$FLWR_HOME/register.log" 2>&1 ||
            grep -q -i 'already' "$FLWR_HOME/register.log" ||
            die "the key of $task cannot be registered: see $FLWR_HOME/register.log"
    done
}

run_server() { # FOLDER: run the server's app to its end, on the flags in FOLDER
    local status=''
    echo "-- the server's log: $1/run.log"
    # Only the command is redirected: a trap that runs meanwhile writes to the terminal.
    ${WITH_PARENT[@]+"${WITH_PARENT[@]}"} flwr run federation/app here --stream \
        --run-config "flags=\"$1/server.flags\"" >"$1/run.log" 2>&1 &
    # `flwr run` also succeeds if the app fails after its start.
    wait $! && status=$(flwr list here --limit 1 --format json 2>>"$1/run.log") || true
    [[ $status == *'"finished:completed"'* ]] ||
        die "the server failed: see $1/run.log; once that is corrected, $(resuming)"
}
