"""M5Product and its kind, where a query is a listing with a label: classified by it, the label never shown."""

import dataclasses
import json

from moon_jax.config import Config, DataConfig, EvalConfig
from moon_jax.data import records, sources
from moon_jax.evaluation.benchmark import build

ALL = ("retrieval", "classification", "attributes")
CONFIG = Config(eval=EvalConfig(ks=(1, 2), tasks=ALL, bootstrap_samples=50))


def test_queries_that_are_listings_are_classified_by_their_labels(tmp_path):
    """Not by what the first listing with their label is: that one is blue."""
    said = {
        "q1": ("red shirt", "color#:#red", "shirt"),
        "q2": ("a hat", "", "hat"),
        "g1": ("blue shirt", "color#:#blue", "shirt"),
        "g2": ("red shirt L", "color#:#red#;#size#:#L", "shirt"),
        "g3": ("thing", "size#:#S", "other"),
        "g4": ("top hat", "", "hat"),
    }
    info = {name: {"title": title, "pv": pv} for name, (title, pv, _) in said.items()}
    labels = {name: {"title": title, "label": label, "url": ""} for name, (title, _, label) in said.items()}
    files = {"id_info": info, "id_label": labels, "query_ids": ["q1", "q2"], "gallery_ids": ["g1", "g2", "g3", "g4"]}
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    data = DataConfig(path=str(tmp_path), format="m5product", unseen_share=1.0)
    dataset = sources.read(data)
    moved = records.replace_images(dataset, lambda image, _: dataclasses.replace(image, box=(0.0, 0.0, 1.0, 1.0)))
    assert {t.listing.product.images[0].box for t in moved.unseen} == {(0.0, 0.0, 1.0, 1.0)}
    benchmark = build(dataset, dataclasses.replace(CONFIG, data=data))
    found = {}
    for trial in benchmark.trials:
        for asked in trial.asked if trial.task != "retrieval" else ():
            truth = [trial.candidates.names[place] for place in asked.truth]
            document = benchmark.documents[asked.document]
            shown = [segment.text for segment in document.segments], len(document.images)
            found[trial.task, trial.about[1], trial.subject, trial.modality, asked.triplet] = truth, *shown
    shown = {"image": ([], 1), "text": (["red shirt"], 0), "item": (["red shirt"], 1)}
    hats = {"image": ([], 1), "text": (["a hat"], 0), "item": (["a hat"], 1)}
    assert found == {
        **{("classification", "deepest", "positive", m, "q1"): (["shirt"], *said) for m, said in shown.items()},
        **{("classification", "deepest", "positive", m, "q2"): (["hat"], *said) for m, said in hats.items()},
        **{("attributes", "color", "positive", m, "q1"): (["red"], *said) for m, said in shown.items()},
    }
    classes = {trial.candidates.names for trial in benchmark.trials if trial.task == "classification"}
    assert classes == {("hat", "other", "shirt")}  # also what no query is
    for document in benchmark.documents:  # the label stands in candidate texts alone
        texts = {segment.text for segment in document.segments}
        assert len(document.segments) == 1 or not texts & {"hat", "other", "shirt"}
    products = {asked.product for t in benchmark.trials if t.task == "classification" for asked in t.asked}
    assert len(products) == 2
    assert not products & set(dataset.numbers.values())  # q1 and q2 are no products


def test_m5product_sample_is_classified_by_its_labels(moon_data):
    folder = moon_data / "formats/m5product"
    data = DataConfig(path=str(folder), image_folder=str(moon_data), format="m5product", unseen_share=1.0)
    benchmark = build(sources.read(data), dataclasses.replace(CONFIG, data=data))
    label = {name: entry["label"] for name, entry in json.loads((folder / "id_label.json").read_text()).items()}
    trials = [trial for trial in benchmark.trials if trial.task == "classification"]
    assert {trial.modality for trial in trials} == {"image", "text", "item"}
    for trial in trials:
        listed = json.loads((folder / "gallery_ids.json").read_text()) + [asked.triplet for asked in trial.asked]
        assert set(trial.candidates.names) >= {label[name] for name in listed}
        for asked in trial.asked:
            assert [trial.candidates.names[place] for place in asked.truth] == [label[asked.triplet]]
    info = json.loads((folder / "id_info.json").read_text())
    for trial in (trial for trial in benchmark.trials if trial.task == "attributes"):
        assert all(trial.about[1] in info[asked.triplet]["pv"] for asked in trial.asked)
