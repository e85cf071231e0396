from gmdf_hf.evaluation.tables import csv_text, domain_table, markdown, percent, percent_interval

FIGURES = dict.fromkeys(("auc", "ap", "acc", "eer", "m", "fpr", "fnr", "ece", "brier"), 0.25) | {"real": 3, "fake": 5}
RESULTS = {
    "source_domains": ["x"],
    "domains": {"x": {"frame": FIGURES}, "z": {"frame": FIGURES | {"auc": None}}},
    "intervals": {"domains": {"x": {"frame": {"auc": [0.2, 0.3]}}, "z": {"frame": {"auc": [None, None]}}}},
}


def test_domain_table_has_one_row_per_domain_with_interval():
    header, x, z = domain_table(RESULTS)
    assert dict(zip(header, x, strict=True)) | {"AP": "25.00"} == {
        "domain": "x",
        "role": "source",
        "level": "frame",
        "scored": "-",
        "real": "3",
        "fake": "5",
        "AUC": "25.00",
        "95 %": "20.0 to 30.0",
        **dict.fromkeys(("TPR@1%", "TPR@.1%", "pAUC"), "-"),
    } | dict.fromkeys(("AP", "ACC", "EER", "M", "FPR", "FNR", "ECE", "Brier"), "25.00")
    assert z[1] == "unseen"
    assert z[6:8] == ["-", "-"]


def test_unreadable_domain_has_a_row_without_metrics():
    rows = domain_table(RESULTS | {"unread_domains": ["w"]})
    assert len(rows) == 4
    assert rows[-1][:6] == ["w", "unseen", "frame", "0.00", "0", "0"]
    assert len(rows[-1]) == len(rows[0]) and set(rows[-1][6:]) == {"-"}


def test_table_formats():
    rows = [["name", "value"], ["a|b", "1"], ["c,d", "2"]]
    assert markdown(rows) == "| name | value |\n| --- | ---: |\n| a/b | 1 |\n| c,d | 2 |"
    assert csv_text(rows) == 'name,value\na|b,1\n"c,d",2\n'


def test_missing_value_is_a_dash():
    assert percent(float("nan")) == percent(None) == percent_interval(None) == "-"
    assert percent(0.12345) == "12.35"


def test_markdown_shows_names_as_they_are():
    table = markdown([["domain", "AUC"], ["<script>alert(1)</script>", "[x](javascript:y) `z` a|b\nc"]])
    assert "<script" not in table and "](" not in table.replace("\\]", "")
    assert table.splitlines()[2] == r"| &lt;script>alert(1)&lt;/script> | \[x\](javascript:y) \`z\` a/b c |"
