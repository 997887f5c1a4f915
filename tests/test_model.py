"""What cannot be shown in a lesson about models, because it needs the network to be absent."""

import pytest

from petnb.model import create_classifier


def test_missing_weights_name_the_backbone_that_needs_no_network() -> None:
    with pytest.raises(ConnectionError, match="'lite0' comes with petnb") as caught:
        create_classifier("resnet18", 2)
    assert "'resnet18'" in str(caught.value)


def test_damaged_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("petnb.model.LITE0_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="SHA-256"):
        create_classifier("lite0", 2)
