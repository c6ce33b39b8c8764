# Defaults for the table digits_few: the controls take half a minute (config.sh explains the variables).
# shellcheck shell=bash disable=SC2034

: "${CONTROL:=1}"
