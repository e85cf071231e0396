"""Stretches of a video above the threshold."""

from gmdf_hf.serving.decisions import segment_lines, stretches


def test_stretches_are_the_longest_runs():
    scores = [0.9, 0.2, 0.8, 0.7, 0.1, 0.5]
    faces = [{"frame": 10 * n, "seconds": 0.4 * n, "score": score} for n, score in enumerate(scores)]
    found = stretches(faces, 0.5)
    assert [(run["first_frame"], run["last_frame"], run["frames"]) for run in found] == [
        (0, 0, 1),
        (20, 30, 2),
        (50, 50, 1),
    ]
    assert found[1]["score"] == 0.75 and (found[1]["start"], found[1]["end"]) == (0.8, 0.4 * 3)
    assert stretches(faces, 0.95) == []
    lines = segment_lines({"source": "a", "persons": [{"person": 0, "segments": found}]}, str)
    assert lines[1] == "  person 1: 0.80 s to 1.20 s, mean score 0.750 of 2 frames (a)"
    timeless = [face | {"seconds": None} for face in faces]
    lines = segment_lines({"source": "a", "persons": [{"person": 0, "segments": stretches(timeless, 0.5)}]}, str)
    assert "frames 20 to 30" in lines[1]
