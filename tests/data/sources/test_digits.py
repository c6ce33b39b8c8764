import pytest
import torch

from data import prepare
from utils.errors import UserError


def test_digits(tmp_path, caplog, load_cached):
    with caplog.at_level("INFO"):
        prepare.main(["digits", "--data_root", str(tmp_path)])
    assert caplog.messages[-1].startswith("digits: 5 tasks, 1442 training and 355 test images")
    train, test = (load_cached("digits", tmp_path, "four_five", split) for split in ("train", "test"))
    assert train["images"].shape[1:] == (3, 32, 32)
    assert int(train["images"].min()) == 0 and int(train["images"].max()) == 255
    for record in (train, test):
        assert torch.equal(record["images"][:, 0], record["images"][:, 2])
    # scikit-learn has 181 fours and 182 fives.
    assert train["labels"].bincount().tolist() == [145, 146]
    assert test["labels"].bincount().tolist() == [36, 36]


def test_bundled_samples_have_no_source(tmp_path):
    with pytest.raises(UserError, match="digits comes with Python and scikit-learn: leave out --source"):
        prepare.main(["digits", "--source", str(tmp_path), "--data_root", str(tmp_path)])
