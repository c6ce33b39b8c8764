#!/usr/bin/env bash
# Certificates and keys of a federation: the server's, for TLS, and one key per device, which proves who it is.
#
# usage: bash run_pickaback/federation_keys.sh FOLDER HOST TASK…
#
#   FOLDER  where they go: ca.crt, server.crt, server.key, and keys/<task> with keys/<task>.pub
#   HOST    the server's address or name, as devices call it
#   TASK…   one device per task
#
# The server needs ca.crt, server.crt, server.key and keys/*.pub; a device ca.crt and its own keys/<task>. Nothing
# else leaves the folder. Keys that exist are kept; certificates last a year.
set -euo pipefail

if (($# < 3)) || [[ $1 == -* ]]; then
    sed -n '2,/^[^#]/{/^#/!q;s/^# \{0,1\}//;p;}' "$0"
    exit 2
fi
folder=$1 host=$2
shift 2
[[ $host =~ ^[0-9A-Za-z:][0-9A-Za-z.:-]{0,63}$ ]] || {
    echo "error: host $host is not an address or a name of at most 64 characters such as server.example.org" >&2
    exit 1
}
for task in "$@"; do
    # As in a table: the name becomes a file.
    [[ -n $task && $task != [.-]* && $task != *[/\\,[:cntrl:]]* ]] || {
        echo "error: $task is not the name of a task: give names such as fish" >&2
        exit 1
    }
done
umask 077
mkdir -p "$folder/keys"
cd "$folder"
kind=DNS
[[ ! $host =~ ^[0-9.]+$|: ]] || kind=IP

new_key() { # FILE
    [[ -e $1 ]] || openssl ecparam -name prime256v1 -genkey -noout -out "$1"
}

new_key ca.key
new_key server.key
openssl req -x509 -new -key ca.key -sha256 -days 365 -subj "/CN=federation" -out ca.crt \
    -addext "keyUsage=critical,keyCertSign,cRLSign"
openssl req -new -key server.key -subj "/CN=$host" -out server.csr
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -sha256 -days 365 -out server.crt \
    -extfile <(echo "subjectAltName=$kind:$host,IP:127.0.0.1,DNS:localhost") 2>/dev/null
rm -f server.csr ca.srl
for task in "$@"; do
    [[ -e keys/$task ]] || ssh-keygen -q -t ecdsa -b 384 -N "" -C "$task" -f "keys/$task"
done
