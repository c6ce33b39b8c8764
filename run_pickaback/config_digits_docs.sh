# Defaults for the table digits_docs, small enough for two cores; the environment and config.sh say what each is.
# shellcheck shell=bash disable=SC2034

: "${ARCH:=perceiver_io}"
: "${SIZE:=tiny}"
: "${EPOCHS:=8}"
: "${PRUNE_EPOCHS:=2}"
: "${SPARSITIES:=0.3 0.6 0.9}"
: "${MAX_WIDTH:=1.5}"
