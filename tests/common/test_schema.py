import pytest

from gmdf_hf.common.schema import check_name
from gmdf_hf.modeling import GMDFConfig
from gmdf_hf.training.config import TrainConfig

BAD = ["", "../x", "a/b", "<script>", "a b", "-rf", ".hidden", "a" * 101, "naïve", "a\n"]


@pytest.mark.parametrize("name", BAD)
def test_names_that_leave_their_place_are_refused(name):
    with pytest.raises(ValueError, match="must begin with a letter"):
        check_name(name)
    with pytest.raises(ValueError, match="domain name"):
        TrainConfig(source_domains={"a": "drawn:swap", name: "drawn:reenact"})
    with pytest.raises(Exception, match="`domains` must be"):
        GMDFConfig(domains=["a", name])


def test_usual_names_are_taken():
    for name in ("celeb-df_v2", "FF++".replace("+", "p"), "dfdc", "0.5_c23"):
        assert check_name(name) == name
