# Defaults for the table digits_docs: a network and a schedule that fit two cores (config.sh explains the variables).
# shellcheck shell=bash disable=SC2034

: "${ARCH:=perceiver_io}"
: "${SIZE:=tiny --num_latents 16 --latent_dim 64 --depth 1 --latent_heads 2 --latent_dim_head 32 --cross_dim_head 32}"
: "${BATCH_SIZE:=8}"
: "${EPOCHS:=16}"
: "${PRUNE_EPOCHS:=4}"
: "${SPARSITIES:=0.3 0.6 0.9}"
: "${MAX_WIDTH:=1.5}"
