"""Clustering: written files, cluster assignments, scores, and error messages."""

import csv
import json
import math
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import pretask
from pretask import data as sources
from pretask import encoders
from pretask.cli.main import main
from pretask.data.base import OpenOptions
from pretask.encoders.readout import Readout
from pretask.errors import install_command
from pretask.ops import agglomerative
from pretask.ops.neighbors import unit
from pretask.rng import Rng
from pretask.train.run import Run
from pretask.workflows import cluster, embed


@pytest.fixture(scope="module")
def kinds():
    """(60, 16, 16, 3): noise around three alternating means."""
    mean = Rng(0, "means").uniform(3, 16, 16, 3, high=255)
    noisy = mean[torch.arange(60) % 3] + 25 * Rng(1).normal(60, 16, 16, 3)
    return noisy.clamp(0, 255).to(torch.uint8).numpy()


@pytest.fixture
def photos(kinds, tmp_path):
    """Class folders with one unreadable file."""
    for i, pixels in enumerate(kinds):
        path = tmp_path / "photos" / "abc"[i % 3] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (tmp_path / "photos" / "a" / "30.png").write_bytes(b"no picture")
    return tmp_path / "photos"


@pytest.fixture
def plain(kinds, tmp_path):
    """The same images without labels."""
    np.savez(tmp_path / "plain.npz", images=kinds)
    return tmp_path / "plain.npz"


@pytest.fixture
def run(run_of, tmp_path):
    torch.manual_seed(0)
    return run_of(encoders.build("resnet_small:width=8", 3, 16).eval(), tmp_path / "run")


def rows(out):
    with (out / "clusters.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("by", ["links", "kmeans"])
def test_pixels_are_clustered_and_every_file_is_listed_with_its_cluster(photos, tmp_path, capsys, by):
    out = tmp_path / "out"
    words = ["cluster", "pixels", "--data", str(photos), "--clusters", "3", "--out", str(out), "--by", by]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "NMI 100.0" in shown.out and "ACC 100.0" in shown.out and "20, 20, 19" in shown.out
    assert "wrote 59 images in 3 clusters" in shown.err and "1 skipped: 1 not an image" in shown.err
    found = rows(out)
    assert len(found) == 59 and "a/30.png" not in {row["file"] for row in found}
    of = {row["file"]: row["cluster"] for row in found}
    for name in "abc":
        assert len({c for file, c in of.items() if file.startswith(name)}) == 1
    table = pq.read_table(out / "clusters.parquet").to_pydict()
    assert table["file"] == [row["file"] for row in found]
    assert table["cluster"] == [int(row["cluster"]) for row in found]
    np.testing.assert_allclose(table["distance"], [float(row["distance"]) for row in found], rtol=1e-4)
    assert "30.png,not an image" in (out / "bad.csv").read_text()
    assert sorted(p.name for p in out.glob("*.png")) == [f"cluster-{c:03}.png" for c in range(3)]


def test_data_without_labels_gives_the_same_clusters_and_no_scores(photos, plain, tmp_path, capsys):
    assert (
        main(
            [
                "cluster",
                "pixels",
                "--data",
                str(plain),
                "--clusters",
                "3",
                "--out",
                str(tmp_path / "o"),
                "--json",
            ]
        )
        == 0
    )
    summary = json.loads(capsys.readouterr().out)
    assert summary["nmi"] is None and summary["acc"] is None and summary["sizes"] == [20, 20, 20]
    assert json.loads((tmp_path / "o" / "summary.json").read_text()) == summary
    assert [int(row["cluster"]) for row in rows(tmp_path / "o")] == [0, 1, 2] * 20  # in order of appearance


def test_labels_affect_only_the_scores(kinds, tmp_path):
    made = []
    for name, label in (("true", np.arange(60) % 3), ("false", np.arange(60) // 20)):
        np.savez(tmp_path / f"{name}.npz", images=kinds, labels=label)
        data = cluster.open_images(str(tmp_path / f"{name}.npz"), OpenOptions())
        made.append(cluster.cluster(cluster.subject("pixels"), data, 3, tmp_path / name))
    assert rows(tmp_path / "true") == rows(tmp_path / "false")
    assert made[0].nmi.value == pytest.approx(100) and made[1].nmi.value < 20
    assert made[0].acc.value == 100 and made[1].acc.value < 50


def test_an_image_outside_the_class_folders_is_clustered_and_scores_are_omitted(photos, tmp_path, capsys):
    (photos / "b" / "01.png").rename(photos / "01.png")
    out = tmp_path / "out"
    assert main(["cluster", "pixels", "--data", str(photos), "--clusters", "3", "--out", str(out)]) == 0
    assert "NMI" not in capsys.readouterr().out
    of = {row["file"]: row["cluster"] for row in rows(out)}
    assert len(of) == 59 and of["01.png"] == of["b/04.png"]


def test_a_run_is_clustered_by_its_pooled_features(run, plain, tmp_path):
    out = tmp_path / "out"
    assert main(["cluster", str(run), "--data", str(plain), "--clusters", "4", "--out", str(out)]) == 0
    x = unit(torch.from_numpy(embed.array(Readout(Run(run).encoder), sources.open(plain, size=16))))
    expected = agglomerative.cluster(x, 4)
    assert [int(row["cluster"]) for row in rows(out)] == expected.tolist()
    mean = torch.stack([x[expected == c].mean(0) for c in range(4)])
    far = (x - mean[expected]).norm(dim=1)
    np.testing.assert_allclose([float(row["distance"]) for row in rows(out)], far, rtol=1e-4, atol=1e-6)


def test_a_method_is_trained_first_and_jule_clusters_by_its_own_head(plain, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def small(job, on_log):
        trained.append((job.method, job.config.clusters))
        flags = {"encoder": "jule:width=8", "epochs": 1, "batch": 20, "quiet": True}
        return pretask.pretrain(
            job.method, job.settings.data, tmp_path / "trained", config=job.config, **flags
        )

    trained = []
    monkeypatch.setattr("pretask.workflows.cluster.pretrain", small)
    assert main(["cluster", "jule", "--data", str(plain), "--clusters", "3", "--out", "out"]) == 0
    assert trained == [("jule", 3)]
    method = Run(tmp_path / "trained").method
    pool = torch.from_numpy(embed.array(Readout(method.encoder), sources.open(plain)))
    z = method.cluster_embedding(pool)
    assert z.shape == (60, 160)
    assert method.cluster_options["num_neighbors"] == 10 != agglomerative.NEIGHBORS
    by_run = agglomerative.cluster(z, 3, num_neighbors=10)
    assert [int(row["cluster"]) for row in rows(tmp_path / "out")] == by_run.tolist()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["neighbors"] == 10


@pytest.fixture(scope="module")
def outliers():
    """(202, 8, 8, 1): two groups of 100 images, and two images far from both, which differ in two pixels."""
    place = torch.tensor([[40.0, 40.0]] * 100 + [[130.0, 40.0]] * 100 + [[30.0, 200.0], [36.0, 200.0]])
    place[:200] += 5 * Rng(0).normal(200, 2)
    image = torch.zeros(202, 64)
    image[:, [9, 54]] = place
    return image.view(202, 8, 8, 1).round().clamp(0, 255).to(torch.uint8).numpy()


@pytest.fixture
def odd(outliers, tmp_path):
    np.savez(tmp_path / "odd.npz", images=outliers)
    return tmp_path / "odd.npz"


def sizes(out):
    return sorted(json.loads((out / "summary.json").read_text())["sizes"])


def test_smallest_flag_decides_whether_outliers_form_a_cluster(odd, tmp_path, capsys):
    words = ["cluster", "pixels", "--data", str(odd), "--clusters", "3"]
    assert main([*words, "--out", str(tmp_path / "all"), "--smallest", "0"]) == 0
    assert sizes(tmp_path / "all") == [2, 100, 100]
    assert main([*words, "--out", str(tmp_path / "large")]) == 0
    assert sizes(tmp_path / "large")[0] > 2
    data = cluster.open_images(str(odd), OpenOptions())
    made = cluster.cluster(cluster.subject("pixels"), data, 3, tmp_path / "api", smallest=0.0)
    assert sorted(made.sizes) == [2, 100, 100] and made.smallest == 0 and made.exact
    capsys.readouterr()


def test_exact_flag_selects_exact_affinities(tmp_path, capsys):
    image = torch.zeros(150, 64)
    image[:, [9, 30, 54]] = Rng(0).uniform(150, 3, high=140).round()
    np.savez(tmp_path / "cloud.npz", images=image.view(150, 8, 8, 1).to(torch.uint8).numpy())
    x = image[:, [9, 30, 54]] / 255
    slow, fast = (agglomerative.cluster(x, 5, num_neighbors=8, exact=exact) for exact in (True, False))
    assert not slow.equal(fast), "the flag matters here"
    words = [
        "cluster",
        "pixels",
        "--data",
        str(tmp_path / "cloud.npz"),
        "--clusters",
        "5",
        "--neighbors",
        "8",
    ]
    for exact, expected in (("True", slow), ("False", fast)):
        assert main([*words, "--out", str(tmp_path / exact), "--exact", exact]) == 0
        assert [int(row["cluster"]) for row in rows(tmp_path / exact)] == expected.tolist()
    capsys.readouterr()


def trained_jule(recipe, odd, tmp_path, **config):
    settings = {"encoder": "jule:width=8,blocks=1", "epochs": 1, "batch": 50, "lr": 1e-9, "quiet": True}
    out = tmp_path / recipe.replace(":", "-")
    return pretask.pretrain(recipe, odd, out, config={"clusters": 3} | config, **settings)


def test_a_run_of_jule_paper_is_clustered_as_the_paper_does(odd, tmp_path, capsys):
    """jule:paper uses the fast mode, period by period, and outliers count; another recipe uses its own options, and flags
    override both."""
    run = trained_jule("jule:paper", odd, tmp_path)
    z = run.method.cluster_embedding(torch.from_numpy(embed.array(Readout(run.encoder), sources.open(odd))))
    distance, index = agglomerative.neighbors(z, 20)
    w, label = agglomerative.affinity_graph(distance, index), agglomerative.neighbor_chains(index[:, 0])
    while (count := int(label.max()) + 1) > 3:
        count -= min(math.ceil(0.9 * count), count - 3)
        label = agglomerative.agglomerate(
            w, label, z, count, neighbor_clusters=5, exact=False, final_clusters=3
        )
    words = ["cluster", str(run.folder), "--data", str(odd), "--clusters", "3"]
    assert main([*words, "--out", str(tmp_path / "own")]) == 0
    assert [int(row["cluster"]) for row in rows(tmp_path / "own")] == label.tolist()
    assert sizes(tmp_path / "own") == [2, 100, 100]
    summary = json.loads((tmp_path / "own" / "summary.json").read_text())
    assert summary["neighbors"] == 20 and summary["exact"] is False and summary["smallest"] == 0
    assert main([*words, "--out", str(tmp_path / "flags"), "--smallest", "0.05", "--exact", "True"]) == 0
    assert sizes(tmp_path / "flags")[0] > 2
    other = trained_jule("jule", odd, tmp_path, smallest=0.0, neighbor_clusters=3)
    made = cluster.cluster(
        cluster.subject(str(other.folder)),
        cluster.open_images(str(odd), OpenOptions(size=8, channels=1)),
        3,
        tmp_path / "o",
    )
    z = other.method.cluster_embedding(
        torch.from_numpy(embed.array(Readout(other.encoder), sources.open(odd)))
    )
    expected = agglomerative.cluster(z, 3, num_neighbors=10, neighbor_clusters=3, smallest=0.0)
    assert [int(row["cluster"]) for row in rows(tmp_path / "o")] == expected.tolist()
    assert made.smallest == 0 and made.exact and made.neighbors == 10
    capsys.readouterr()


def test_merge_flags_also_apply_to_the_training_of_a_method(plain, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trained = []

    def small(job, on_log):
        config = job.config
        trained.append((config.clusters, config.neighbors, config.exact, config.smallest))
        flags = {"encoder": "jule:width=8", "epochs": 1, "batch": 20, "quiet": True}
        return pretask.pretrain(
            job.method, job.settings.data, tmp_path / "trained", config=job.config, **flags
        )

    monkeypatch.setattr("pretask.workflows.cluster.pretrain", small)
    words = ["cluster", "jule", "--data", str(plain), "--clusters", "3", "--out", "out"]
    assert main([*words, "--smallest", "0", "--exact", "False", "--neighbors", "7"]) == 0
    assert trained == [(3, 7, False, 0.0)]
    capsys.readouterr()


def test_neighbors_flag_sets_the_number_of_neighbors_in_the_graph(run, plain, tmp_path, capsys):
    words = ["cluster", str(run), "--data", str(plain), "--clusters", "4", "--out", str(tmp_path / "out")]
    assert main([*words, "--neighbors", "2"]) == 0
    assert "2 nearest neighbors" in capsys.readouterr().out
    x = unit(torch.from_numpy(embed.array(Readout(Run(run).encoder), sources.open(plain, size=16))))
    few = agglomerative.cluster(x, 4, num_neighbors=2)
    assert not few.equal(agglomerative.cluster(x, 4)), "the number matters here"
    assert [int(row["cluster"]) for row in rows(tmp_path / "out")] == few.tolist()


def test_contact_sheet_shows_the_images_nearest_to_the_mean_first(plain, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(cluster, "SHOWN", 5)
    monkeypatch.setattr(
        cluster.sheet, "images", lambda x, title: shown.append((x, title)) or Image.new("RGB", (9, 9))
    )
    data = cluster.open_images(str(plain), OpenOptions())
    cluster.cluster(cluster.subject("pixels"), data, 3, tmp_path / "out")
    for c, (x, title) in enumerate(shown):
        mine = [
            (float(row["distance"]), int(row["file"]))
            for row in rows(tmp_path / "out")
            if row["cluster"] == str(c)
        ]
        nearest = [i for _, i in sorted(mine)[:5]]
        assert torch.equal(x, data.images.__getitems__(torch.tensor(nearest)).image)
        assert title == f"cluster {c}: 20 images, the 5 nearest to its mean"


def test_user_errors_are_one_line_and_leave_no_files(run, plain, tmp_path, capsys):
    new = str(tmp_path / "new")
    for words, said in (
        ([str(run), "--clusters", "3", "--out", str(tmp_path)], "exists; choose another --out"),
        ([str(run), "--clusters", "61", "--out", new], "--clusters 61 is out of range for 60 images"),
        (["pixels", "--clusters", "0", "--out", new], "--clusters 0 is out of range"),
        (["pixels", "--clusters", "3", "--out", new, "--neighbors", "0"], "--neighbors 0 is out of range"),
        (["pixels", "--clusters", "3", "--out", new, "--smallest", "2"], "--smallest 2.0 is out of range"),
        ([str(tmp_path / "gone"), "--clusters", "3", "--out", new], "no weights at"),
        (["pixels", "--out", new], "clusters"),
    ):
        assert main(["cluster", *words, "--data", str(plain)]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_missing_numba_names_its_install_command(plain, tmp_path, monkeypatch, capsys):
    for name in [n for n in sys.modules if n.startswith("pretask.ops.merging")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("pretask.ops.merging", raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)
    words = ["cluster", "pixels", "--data", str(plain), "--clusters", "3", "--out", str(tmp_path / "o")]
    assert main(words) == 2
    assert install_command("cluster") in capsys.readouterr().err
    assert main([*words, "--by", "kmeans"]) == 0  # which needs none
