"""Class names decide what is real and fake, in any case, order and kind of column."""

import logging

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gmdf_hf.common.errors import DomainError
from gmdf_hf.common.labels import FAKE_WORDS, REAL_WORDS, LabelReader, class_of, describe, fake_class
from gmdf_hf.data.dataset import load_domain
from gmdf_hf.data.streams import load_stream, stream_frames
from gmdf_hf.preparation.sources import folder
from tests.domains import png

REAL_NAMES = ["Real", "REAL", "real", "original", "Genuine", "bona fide", "human", "Celeb-real", "realfaces", "0_real"]
FAKE_NAMES = ["Fake", "FAKE", "deepfake", "Deep-Fake", "ai", "AI_generated", "AIGenerated", "synthetic", "1_fake"]
CASES = [str.lower, str.upper, str.title, str]


@pytest.mark.parametrize(
    "name",
    [*REAL_NAMES, "CelebDFv2_real", "nature", "FF-real", "DFDCP_Real", "ｒｅａｌ", "isReal", "REAL faces", "0: real"],
)
def test_names_that_mean_real(name):
    assert class_of(name) == 0


@pytest.mark.parametrize(
    "name",
    [
        *FAKE_NAMES,
        "roop_Fake",
        "Celeb-synthesis",
        "fakes",
        "StyleGAN",
        "fakeface",
        "isFake",
        "Face2Face",
        "attack",
        "1: fake",
        "genAI",
    ],
)
def test_names_that_mean_fake(name):
    assert class_of(name) == 1


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a",
        "LABEL_0",
        "unreal",
        "surreal",
        "realvisxl",
        "really",
        "openai",
        "email",
        "faker",
        "swapnil",
        "inhuman",
        "RealVisXL",
        "OpenAI",
        "israel",
    ],
)
def test_names_without_a_class(name):
    assert class_of(name) is None


@pytest.mark.parametrize(
    "name", ["not fake", "non-real", "NOT_REAL", "isn't real", "un-real", "real_or_fake", "Real-ESRGAN", "ai, human"]
)
def test_names_that_say_both_or_have_a_negation(name):
    assert class_of(name) is None


names = st.tuples(
    st.sampled_from(REAL_WORDS.split("|")),
    st.sampled_from([word for word in FAKE_WORDS.split("|") if word.isalpha()]),
    st.sampled_from(CASES),
    st.sampled_from(CASES),
).map(lambda drawn: (drawn[2](drawn[0]), drawn[3](drawn[1])))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names, st.booleans(), st.sampled_from(["classes", "text", "bool", "int", "float", "digits"]))
def test_memory_and_stream_read_the_same_truth(tmp_path_factory, pair, flipped, kind):
    truth = [0, 1, 1, 0, 0, 1]
    order = pair[::-1] if flipped else pair
    features = {
        "classes": (datasets.ClassLabel(names=list(order)), [order.index(pair[label]) for label in truth]),
        "text": (datasets.Value("string"), [pair[label] for label in truth]),
        "bool": (datasets.Value("bool"), [bool(label) for label in truth]),
        "int": (datasets.Value("int8"), truth),
        "float": (datasets.Value("float32"), [float(label) for label in truth]),
        "digits": (datasets.Value("string"), [str(label) for label in truth]),
    }
    feature, values = features[kind]
    rows = {"image": [{"bytes": png(row), "path": None} for row in range(6)], "label": values}
    made = datasets.Dataset.from_dict(rows, datasets.Features({"image": datasets.Image(), "label": feature}))
    path = tmp_path_factory.mktemp("labels")
    made.to_parquet(path / "train.parquet")
    in_memory = load_domain("d", "train", str(path / "train.parquet"))
    streamed = [frame.label for frame in stream_frames(load_stream("d", "train", str(path / "train.parquet")))]
    assert in_memory.labels.tolist() == streamed == truth


@pytest.mark.parametrize(
    ("column", "one"),
    [("isReal", 0), ("isFake", 1), ("is_real", 0), ("is_fake", 1), ("label", 1), ("target", 1), ("REAL", 0)],
)
def test_the_name_of_a_column_of_numbers_decides(column, one):
    read = LabelReader("d", None, column)
    assert [read(True), read(1), read(1.0), read("1"), read(False)] == [one] * 4 + [1 - one]


@pytest.mark.parametrize(
    ("names", "column", "value", "found"),
    [
        (["real", "fake"], "label", -1, "class number -1 of 2 classes"),
        (["real", "fake"], "label", None, "a row without a label"),
        (None, "label", float("nan"), "a row without a label"),
        (None, "label", -1, "found -1"),
        (None, "label", 2, "found 2"),
        (None, "label", 0.5, r"found 0\.5"),
        (None, "label", "unreal", "found 'unreal'"),
        (None, "label", "True", "found 'True'"),
        (None, "not_fake", 1, "whose name has a negation"),
    ],
)
def test_values_that_do_not_tell_their_class_are_refused(names, column, value, found):
    with pytest.raises(DomainError, match=found):
        LabelReader("d", names, column)(value)


@pytest.mark.parametrize(("names", "found"), [(["a", "b"], "'a' among the classes"), (["fake", "ai"], "all of one")])
def test_classes_that_do_not_tell_are_refused_before_a_row_is_read(names, found):
    with pytest.raises(DomainError, match=found):
        LabelReader("d", names)


def test_the_user_states_what_names_do_not_say():
    read = LabelReader("d", ["Camera", "Flux"], stated={"camera": "real", "Flux": "fake"})
    assert [read(0), read(1)] == [0, 1]
    read = LabelReader("d", None, stated={"0": "fake", "1": "real"})
    assert [read(0), read(1)] == [1, 0]
    read = LabelReader("d", None, stated={"True": "real", "False": "fake"})
    assert [read(True), read(False)] == [0, 1]


def test_what_was_read_as_what_is_said_once(caplog):
    with caplog.at_level(logging.WARNING):
        read = LabelReader("d", ["Fake", "Real"])
        read(0), read(1)
    assert [record.message for record in caplog.records] == ["Domain 'd': label: Fake -> 1 (fake), Real -> 0 (real)"]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        LabelReader("d", None).read_all([0, 1, 0])
    assert [record.message for record in caplog.records] == ["Domain 'd': label: 0 -> 0 (real), 1 -> 1 (fake)"]
    assert describe({"Fake": 1, "Real": 0}) == "label: Fake -> 1 (fake), Real -> 0 (real)"


@pytest.mark.parametrize("real", REAL_NAMES)
@pytest.mark.parametrize("fake", FAKE_NAMES[:4])
def test_detectors_and_folders_follow_the_same_rule(tmp_path, real, fake):
    assert fake_class({0: fake, 1: real}) == 0 and fake_class({0: real, 1: fake}) == 1
    for name in (real, fake):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(png(0))
    listing = folder.list_records(tmp_path)
    assert {record.video_id.split("/")[0]: record.label for record in listing.records} == {real: 0, fake: 1}
    assert f"{real} -> 0 (real), {fake} -> 1 (fake)" in listing.notes[0]
