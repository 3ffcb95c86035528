"""What counts as a document, and what its title and text are."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from sage_cli.documents import DocumentReader
from sage_cli.html_text import read_html

LONG = "SAGE serves pipelines, not just models. " * 3


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def sources(reader: DocumentReader, *places: Path) -> list[str]:
    return [found.document.source for found in reader.read_all(list(places))]


def test_sources_are_relative_to_the_folder_and_in_stable_order(tmp_path: Path) -> None:
    write(tmp_path, {"b.md": LONG + "b", "a/z.rst": LONG + "z", "a/README": LONG + "r", "c.txt": LONG + "c"})
    assert sources(DocumentReader(), tmp_path) == ["b.md", "c.txt", "a/README", "a/z.rst"]


def test_a_named_file_keeps_its_absolute_path_and_may_have_any_suffix(tmp_path: Path) -> None:
    write(tmp_path, {"notes.log": LONG})
    assert sources(DocumentReader(), tmp_path / "notes.log") == [str(tmp_path / "notes.log")]


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "kept.txt": LONG,
            "copy.txt": LONG,
            "code.py": LONG,
            "binary.txt": b"\0\1\2" * 50,
            "noise.txt": bytes(range(128, 160)) * 20,
            "blank.txt": " \n\t\n",
            "large.txt": "x" * 3000,
            "broken.txt.gz": b"no gzip at all",
            ".hidden.txt": LONG + "hidden",
            "node_modules/x.md": LONG + "module",
        },
    )
    reader = DocumentReader(max_bytes=2000)
    assert sources(reader, tmp_path) == ["copy.txt"]
    assert dict(reader.skipped) == {
        "duplicate": 1,
        "not a document type": 1,
        "binary": 2,
        "empty": 1,
        "too large": 1,
        "unreadable": 1,
    }


def test_every_document_with_text_counts_however_short(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "word", "b.txt": "word word word word ", "c.md": "# md\n\ntext"})
    reader = DocumentReader()
    assert sources(reader, tmp_path) == ["a.txt", "b.txt", "c.md"]
    assert not reader.skipped


def test_files_that_are_there_and_not_read_are_known(tmp_path: Path) -> None:
    write(tmp_path, {"large.txt": "x" * 3000, "broken.txt.gz": b"no gzip at all", "blank.txt": " "})
    reader = DocumentReader(max_bytes=2000)
    assert sources(reader, tmp_path) == []
    assert reader.unread == {"large.txt", "broken.txt.gz"}


def test_gzipped_text_is_read_and_bounded_after_unpacking(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "a.md.gz": gzip.compress(b"# Title\n\n" + LONG.encode()),
            "bomb.txt.gz": gzip.compress(b"a" * 10**6),
        },
    )
    reader = DocumentReader(max_bytes=5000)
    (found,) = reader.read_all([tmp_path])
    assert (found.document.source, found.document.title) == ("a.md.gz", "Title")
    assert reader.skipped == {"too large": 1}


def test_old_latin_1_text_is_read(tmp_path: Path) -> None:
    write(tmp_path, {"old.txt": ("Müller und Söhne. " * 5).encode("latin-1")})
    (found,) = DocumentReader().read_all([tmp_path])
    assert found.document.text.startswith("Müller und Söhne.")


def test_the_digest_changes_with_the_text_alone(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": LONG})
    (first,) = DocumentReader().read_all([tmp_path])
    (again,) = DocumentReader().read_all([tmp_path])
    write(tmp_path, {"a.txt": LONG + "more"})
    (changed,) = DocumentReader().read_all([tmp_path])
    assert first.digest == again.digest != changed.digest


def test_a_folder_linked_into_itself_ends(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": LONG})
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "nowhere")
    reader = DocumentReader()
    assert sources(reader, tmp_path) == ["a.txt"]
    assert reader.skipped == {"not a regular file": 1}


def test_a_missing_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(DocumentReader().read_all([tmp_path / "nowhere"]))


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# Markdown title #\n\ntext", "Markdown title"),
        ("Title\n=====\n\ntext", "Title"),
        ("=====\nTitle\n=====\n\ntext", "Title"),
        ("---\ntitle: x\n---\n# After front matter\n", "After front matter"),
        ("# Copyright\n# a comment block\n", None),
        ("just text without a heading\n", None),
    ],
)
def test_titles_of_text(tmp_path: Path, text: str, title: str | None) -> None:
    write(tmp_path, {"a.md": text + LONG})
    (found,) = DocumentReader().read_all([tmp_path])
    assert found.document.title == title


def test_html_gives_title_and_main_text_only() -> None:
    title, text = read_html(
        "<html><head><title>The\n  page</title><style>p {}</style><script>var x = 1</script></head><body>"
        "<nav>Menu Home</nav><header>Site</header><main><h1>Heading</h1><p>First <b>bold</b>ly said.</p>"
        "<p>" + LONG + "</p><ul><li>one</li><li>two</li></ul></main><footer>Imprint</footer></body></html>"
    )
    assert title == "The page"
    assert "Heading\n\nFirst boldly said." in text
    assert "one\n\ntwo" in text
    for unwanted in ("Menu", "Site", "Imprint", "var x", "p {}"):
        assert unwanted not in text


def test_html_without_main_uses_the_body() -> None:
    assert read_html("<body><p>Only this.</p><script>x</script>") == (None, "Only this.")


@pytest.mark.parametrize("page", ["", "<", "<html>", "<p>" * 5000, "\x0b<!doctype"])
def test_broken_html_is_no_error(page: str) -> None:
    read_html(page)
