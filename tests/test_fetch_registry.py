"""The table of public datasets."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from nuclass.core.errors import UserError
from nuclass.xenium.registry import Address, Dataset, RemoteFile, dataset_named, read_registry

REPOSITORY = Path(__file__).parent.parent
REGISTRY = REPOSITORY / "resources" / "datasets.tsv"


@pytest.fixture(scope="module")
def registry() -> dict[str, Dataset]:
    return read_registry(REGISTRY)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("datasets.tsv", "dataset_files.tsv"):
        shutil.copy(REGISTRY.with_name(name), tmp_path / name)
    return tmp_path / "datasets.tsv"


def test_all_datasets(registry: dict[str, Dataset]) -> None:
    assert len(registry) == 20
    for dataset in registry.values():
        assert dataset.organ
        assert dataset.role.startswith(("train ", "cohort "))
        assert dataset.file("outs").name == f"{dataset.name}_outs.zip"
        for kind in ("he", "alignment"):
            file = dataset.file(kind)
            assert file.addresses or file.status in ("not found", "none reported")


def test_several_addresses_and_records(registry: dict[str, Dataset]) -> None:
    ovary = registry["Xenium_Prime_Ovarian_Cancer_FFPE_XRrun"]
    assert [url.split("/")[2] for url in ovary.file("outs").urls] == [
        "s3-us-west-2.amazonaws.com",
        "cf.10xgenomics.com",
    ]
    assert [record.mirror for record in ovary.file("he").records] == [True]
    breast = registry["Xenium_V1_FFPE_Human_Breast_IDC_Big_1"].file("he")
    assert [url.rpartition("Big_1_")[2] for url in breast.urls] == ["he_unaligned_image.ome.tif", "he_image.ome.tif"]
    assert {address.status for address in breast.addresses} == {"inferred"}
    assert breast.size == "8.23 GB"
    lung = registry["Xenium_V1_humanLung_Cancer_FFPE"].file("outs")
    assert [(record.kind, record.mirror) for record in lung.records] == [("sha256", True), ("md5", False)]
    assert registry["Xenium_Prime_Human_Lung_Cancer_FFPE"].file("outs").size == "22,618,312,339 bytes"


def test_every_dataset_of_the_paper_has_addresses(registry: dict[str, Dataset]) -> None:
    lines = (REPOSITORY / "config/slides_paper.tsv").read_text(encoding="utf-8").splitlines()
    for row in csv.DictReader((line for line in lines if not line.startswith("#")), delimiter="\t"):
        dataset = registry[row["dataset"]]
        assert dataset.organ == row["organ"]
        assert all(dataset.file(kind).addresses for kind in ("outs", "he", "alignment"))


def test_misspelt_dataset(registry: dict[str, Dataset]) -> None:
    with pytest.raises(UserError, match="Did you mean 'Xenium_V1_human_Pancreas_FFPE'"):
        dataset_named(registry, "Xenium_V1_human_Pancreas_FFP")


ROW = "Xenium_V1_hKidney_cancer_section\tif_image\t{url}\t{status}\t{bytes}\t{by}\t\t{sha}\t{sha_by}\t\t\t\n"
GOOD = {"url": "https://example.org/x", "status": "seen", "bytes": "", "by": "", "sha": "", "sha_by": ""}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"status": "sene"}, ["the status of a file is not valid. Did you mean 'seen'?", "seen, inferred"]),
        ({"url": "", "status": "seen"}, ["without an address one of not found, none reported"]),
        ({"url": "ftp:/x y"}, ["an address is not valid", "found:      ftp:/x y"]),
        ({"bytes": "1.2 GB", "by": "original: me"}, ["the bytes of a file is not valid", "a whole number"]),
        ({"sha": "abc", "sha_by": "mirror: me"}, ["the sha256 of a file is not valid", "64 hexadecimal digits"]),
        ({"sha": "a" * 64}, ["the source of a file's sha256 is not told", "'original: WHO'"]),
        ({"sha": "a" * 64, "sha_by": "me"}, ["the source of a file's sha256 is not told", "found:      me"]),
    ],
)
def test_faults_are_named_by_line(copy: Path, changes: dict[str, str], told: list[str]) -> None:
    file = copy.with_name("dataset_files.tsv")
    line = len(file.read_text(encoding="utf-8").splitlines()) + 1
    with file.open("a", encoding="utf-8") as stream:
        stream.write(ROW.format(**{**GOOD, **changes}))
    with pytest.raises(UserError) as caught:
        read_registry(copy)
    for part in (*told, f"{file}, line {line}"):
        assert part in str(caught.value)


def test_faults_of_the_datasets(copy: Path) -> None:
    text = copy.read_text(encoding="utf-8")
    copy.write_text(text + text.splitlines()[-1] + "\n", encoding="utf-8")
    with copy.with_name("dataset_files.tsv").open("a", encoding="utf-8") as stream:
        stream.write(ROW.format(**GOOD).replace("hKidney", "hKidny"))
    with pytest.raises(UserError) as caught:
        read_registry(copy)
    assert "a dataset stands twice" in str(caught.value)
    assert "is not known. Did you mean 'Xenium_V1_hKidney_cancer_section'?" in str(caught.value)
    copy.unlink()
    with pytest.raises(UserError, match="a sheet is missing"):
        read_registry(copy)


def test_the_name_of_a_file_leaves_out_a_signature() -> None:
    address = Address("https://host.org/a/X_he_image.ome.tif?Signature=a/b", "seen")
    assert RemoteFile("X", "he", (address,)).name == "X_he_image.ome.tif"
