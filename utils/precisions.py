"""The choices of `--precision`, apart from `utils.runtime`: flags are parsed without loading PyTorch."""

PRECISIONS = ("fp32", "tf32", "bf16")
