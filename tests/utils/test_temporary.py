"""Temporary names: unique, never followed, and removed when their writer is dead."""

import errno
import os
import signal

import pytest

from pgprune import PruningError
from pgprune.utils.files import append_line, make_folder, new_directory, saving, write_file
from pgprune.utils.temporary import temporary

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def dying(path, directory):
    """Leaves a temporary file or directory of a process that was killed while it wrote."""
    child = os.fork()
    if child == 0:
        with temporary(path, directory) as made:
            if directory:
                (made / "model.safetensors").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


@needs_fork
@pytest.mark.parametrize("directory", [False, True])
def test_what_a_kill_leaves_is_removed_by_the_next_writer(tmp_path, directory):
    dying(tmp_path / "hf", directory)
    assert len(os.listdir(tmp_path)) == 1
    with new_directory(tmp_path / "masked") as made:
        (made / "card").write_text("whole")
    assert os.listdir(tmp_path) == ["masked"]


@pytest.mark.parametrize("directory", [False, True])
def test_what_a_living_writer_has_begun_stays(tmp_path, directory):
    path = tmp_path / "hf"
    with temporary(path, directory) as first, temporary(path, directory) as second:
        assert first != second and first.exists()
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "name", [f".hf.{os.getpid()}.tmp", f".hf.{0:08x}.{0:016x}.tmp"], ids=["older", "elsewhere"]
)
def test_a_directory_of_an_older_version_or_another_machine_is_left_alone(tmp_path, name):
    (tmp_path / name).mkdir()
    with new_directory(tmp_path / "hf"):
        pass
    assert sorted(os.listdir(tmp_path)) == [name, "hf"]


def test_a_symbolic_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "results.json").symlink_to("victim")
    write_file(tmp_path / "results.json", b"{}")
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "results.json").is_symlink()


def test_nothing_is_appended_through_a_symbolic_link(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "lines").symlink_to("victim")
    with pytest.raises(PruningError, match="replace the symbolic link"), saving(tmp_path):
        append_line(tmp_path / "lines", "more")
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_folder_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "plots").symlink_to("elsewhere")
    with pytest.raises(PruningError, match="replace the symbolic link"), saving(tmp_path):
        make_folder(tmp_path / "plots")


def test_a_name_of_any_legal_length_can_be_written(tmp_path):
    write_file(tmp_path / ("é" * 127), b"text")
    with new_directory(tmp_path / ("n" * 255)):
        pass
    assert len(os.listdir(tmp_path)) == 2


def test_new_files_have_the_permissions_that_the_user_asks_for(tmp_path):
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "file", b"text")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "make the file system writable"),
        (errno.ENOENT, "make its directory again"),
        (errno.ENAMETOOLONG, "choose a shorter name"),
        (errno.EACCES, "make it writable for you"),
        (errno.EPIPE, "see to that"),
    ],
)
def test_the_remedy_is_for_what_the_disk_says(tmp_path, number, remedy):
    with pytest.raises(PruningError, match=f"; {remedy} or else$"), saving(tmp_path, " or else"):
        raise OSError(number, os.strerror(number))
