"""Compiled code is loaded only from files that no other user can have written."""

import os
import stat
import sys
import types
import warnings
from pathlib import Path

import pytest

from replaykit._kernels import cache

owners = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no owners here")
NAME = "kernel"


@pytest.fixture
def home(tmp_path):
    """A directory of this user."""
    home = tmp_path.resolve() / "home"
    home.mkdir(mode=0o700)
    return home


def look(monkeypatch, chosen):
    """The directory that is used for the choice `chosen`, and the warnings."""
    monkeypatch.setenv("REPLAYKIT_CACHE_DIR", str(chosen))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        directory = cache.cache_directory.__wrapped__()
    assert directory is None or not caught
    return directory, [str(warning.message) for warning in caught]


def refused(monkeypatch, chosen, reason):
    """Check that `chosen` is not used for this reason, with a warning that names it and the remedy."""
    directory, messages = look(monkeypatch, chosen)
    assert directory is None
    (message,) = messages
    assert reason in message
    assert f"not cached in {Path(chosen) / 'replaykit'}" in message
    assert "set REPLAYKIT_CACHE_DIR to" in message


def used(monkeypatch, chosen):
    """The directory that is used for the valid choice `chosen`."""
    directory, messages = look(monkeypatch, chosen)
    assert directory is not None, messages
    return directory


def pretend(monkeypatch, owner_of, me=None):
    """Pretend that files belong to other users. `owner_of` maps paths to owners, and `me` is this user."""
    us = os.geteuid()
    me = us if me is None else me
    owner_of = {(status.st_dev, status.st_ino): owner for path, owner in owner_of.items() for status in [path.lstat()]}

    def pretending(real):
        def status_of(*arguments, **options):
            status = real(*arguments, **options)
            owner = owner_of.get((status.st_dev, status.st_ino), me if status.st_uid == us else status.st_uid)
            return os.stat_result((*status[:4], owner, *status[5:10]))

        return status_of

    monkeypatch.setattr(os, "geteuid", lambda: me)
    monkeypatch.setattr(os, "lstat", pretending(os.lstat))
    monkeypatch.setattr(os, "fstat", pretending(os.fstat))


@owners
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777])
def test_a_directory_that_others_can_write_to_is_refused(home, monkeypatch, mode):
    """A directory that others can write to is refused, even a sticky one, because others could add files."""
    (home / "replaykit").mkdir()
    (home / "replaykit").chmod(mode)
    refused(monkeypatch, home, f"can write to {home / 'replaykit'}. Run `chmod go-w '{home / 'replaykit'}'`")


@owners
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o500])
def test_a_directory_that_others_can_only_read_is_used(home, monkeypatch, mode):
    """A directory that others can only read is used."""
    (home / "replaykit").mkdir()
    (home / "replaykit").chmod(mode)
    assert used(monkeypatch, home) == home / "replaykit"


@owners
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
def test_a_parent_that_others_can_write_to_is_refused(home, monkeypatch, mode):
    """A parent that others can write to is refused, because they could replace the directory."""
    (home / "cache").mkdir()
    assert used(monkeypatch, home / "cache")
    home.chmod(mode)
    refused(monkeypatch, home / "cache", f"can write to {home}. Run `chmod go-w '{home}'`")


@owners
def test_nothing_is_made_below_an_unsafe_parent(home, monkeypatch):
    """Nothing is created below an unsafe parent."""
    home.chmod(0o777)
    refused(monkeypatch, home / "cache", f"can write to {home}")
    assert not list(home.iterdir())


@owners
def test_a_directory_that_another_process_makes_meanwhile_is_used(home, monkeypatch):
    """A directory that another process creates at the same time is used."""
    (home / "replaykit").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "lexists", lambda path: False)
        assert used(patch, home) == home / "replaykit"


@owners
def test_a_sticky_parent_is_safe_for_what_is_ours(home, monkeypatch):
    """A sticky parent such as /tmp is safe, because others cannot replace this user's directory there."""
    home.chmod(0o1777)
    assert used(monkeypatch, home) == home / "replaykit"


@owners
def test_what_another_user_has_in_a_sticky_parent_is_refused(home, monkeypatch):
    """In a sticky parent, a directory of another user is refused. Anyone can create one in /tmp."""
    home.chmod(0o1777)
    (home / "cache").mkdir()
    pretend(monkeypatch, {home / "cache": 4711})
    refused(monkeypatch, home / "cache", f"{home / 'cache'} belongs to user 4711")


@owners
@pytest.mark.parametrize("me", [1000, 0])
def test_parents_of_another_user_are_refused(home, monkeypatch, me):
    """A parent that belongs to another user is refused, also for root, as with sudo in a user's home."""
    pretend(monkeypatch, {home: 1001}, me=me)
    refused(monkeypatch, home, f"{home} belongs to user 1001")


@owners
def test_parents_of_root_are_safe(home, monkeypatch):
    """A parent that belongs to root is safe, because root can do everything anyway."""
    pretend(monkeypatch, {home: 0}, me=1000)
    assert used(monkeypatch, home) == home / "replaykit"


@owners
@pytest.mark.parametrize(("me", "other"), [(1000, 0), (1000, 1001), (0, 1000)])
def test_a_directory_of_another_user_is_refused(home, monkeypatch, me, other):
    """A directory of another user is refused, even of root, because this user could not write to it."""
    (home / "replaykit").mkdir()
    pretend(monkeypatch, {home / "replaykit": other}, me=me)
    refused(monkeypatch, home, f"{home / 'replaykit'} belongs to user {other}")


@owners
def test_a_link_is_followed_if_both_sides_are_safe(home, monkeypatch):
    """A link is followed if both ends are safe. The resulting path has no links."""
    (home / "disk" / "cache").mkdir(parents=True)
    (home / "link").symlink_to(home / "disk" / "cache")
    (home / "relative").symlink_to("disk/../link")
    assert used(monkeypatch, home / "link") == home / "disk" / "cache" / "replaykit"
    assert used(monkeypatch, home / "relative") == home / "disk" / "cache" / "replaykit"
    assert used(monkeypatch, home / "link" / ".." / "beside") == home / "disk" / "beside" / "replaykit"


@owners
def test_a_link_as_the_directory_is_followed(home, monkeypatch):
    """A link to a directory is followed, and its target is checked."""
    (home / "elsewhere").mkdir()
    (home / "replaykit").symlink_to("elsewhere")
    assert used(monkeypatch, home) == home / "elsewhere"
    (home / "elsewhere").chmod(0o777)
    refused(monkeypatch, home, f"can write to {home / 'elsewhere'}")


@owners
@pytest.mark.parametrize("unsafe", ["beside the link", "beside the target"])
def test_both_ends_of_a_link_are_checked(home, monkeypatch, unsafe):
    """Both ends of a link are checked, because others could replace the link or its target."""
    (home / "beside the target" / "cache").mkdir(parents=True)
    (home / "beside the link").mkdir()
    (home / "beside the link" / "link").symlink_to(home / "beside the target" / "cache")
    (home / unsafe).chmod(0o777)
    refused(monkeypatch, home / "beside the link" / "link", f"can write to {home / unsafe}")


@owners
def test_a_link_of_another_user_is_refused(home, monkeypatch):
    """A link of another user in a sticky directory is refused, because its owner can replace it."""
    home.chmod(0o1777)
    (home / "cache").mkdir()
    (home / "link").symlink_to("cache")
    pretend(monkeypatch, {home / "link": 4711})
    refused(monkeypatch, home / "link", f"{home / 'link'} belongs to user 4711")


@owners
def test_a_link_that_leads_nowhere_is_no_directory(home, monkeypatch):
    """A link without a target, or to itself, is refused."""
    (home / "circle").symlink_to("circle")
    (home / "nowhere").symlink_to("missing")
    for link in ("circle", "nowhere"):
        assert look(monkeypatch, home / link) == (None, [])


def test_the_directory_is_the_first_that_is_set(home, monkeypatch):
    """The first variable that is set decides. An empty REPLAYKIT_CACHE_DIR means no cache."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(home / "numba"))
    assert look(monkeypatch, "") == (None, [])
    assert not list(home.iterdir())
    assert used(monkeypatch, home / "mine") == home / "mine" / "replaykit"
    monkeypatch.delenv("REPLAYKIT_CACHE_DIR")
    assert cache.cache_directory.__wrapped__() == home / "numba" / "replaykit"


def test_a_missing_home_is_no_directory(monkeypatch):
    """Without a home, there is no directory and no warning."""

    def missing():
        raise RuntimeError("Could not determine home directory.")

    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", missing)
    with monkeypatch.context() as patch:
        patch.delenv("REPLAYKIT_CACHE_DIR", raising=False)
        with warnings.catch_warnings(record=True) as caught:
            assert cache.cache_directory.__wrapped__() is None
    assert not caught


def test_a_relative_directory_stays_where_it_was(home, monkeypatch):
    """A relative directory does not change if the program changes its working directory."""
    monkeypatch.chdir(home)
    assert used(monkeypatch, "cache").is_absolute()


def test_what_is_written_is_read(home):
    """A file is read as it was written. A second file with the same name replaces the first."""
    for content in (b"first", b"second"):
        cache._write(home, NAME, content)
        assert cache._read(home, NAME) == content
    assert [path.name for path in home.iterdir()] == [NAME]


@owners
@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602])
def test_a_file_that_others_can_write_to_is_refused(home, mode):
    """A file that others or its group can write to is refused."""
    cache._write(home, NAME, b"code")
    (home / NAME).chmod(mode)
    with pytest.raises(OSError, match="can write to"):
        cache._read(home, NAME)


@owners
@pytest.mark.parametrize(("me", "other"), [(1000, 0), (1000, 1001), (0, 1000)])
def test_a_file_of_another_user_is_refused(home, monkeypatch, me, other):
    """A file of another user is refused, even of root, because each user writes their own files."""
    cache._write(home, NAME, b"code")
    pretend(monkeypatch, {home / NAME: other}, me=me)
    with pytest.raises(OSError, match=f"belongs to user {other}"):
        cache._read(home, NAME)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege")
@pytest.mark.parametrize("platform", ["this one", "without owners"])
def test_a_link_in_the_place_of_a_file_is_refused(home, monkeypatch, platform):
    """A link in place of a file is refused, even if its target is valid."""
    if platform == "without owners":
        monkeypatch.delattr(os, "geteuid", raising=False)
    cache._write(home, "real", b"code")
    (home / NAME).symlink_to("real")
    with pytest.raises(OSError):  # noqa: PT011 - the message is the operating system's
        cache._read(home, NAME)
    cache._write(home, NAME, b"new")
    assert cache._read(home, "real") == b"code"
    assert cache._read(home, NAME) == b"new"


@pytest.mark.skipif(sys.platform == "win32", reason="directories have no descriptors")
def test_a_directory_or_link_in_its_place_is_refused_at_each_use(home):
    """A directory is checked again when it is used, not only when it is chosen."""
    directory = home / "replaykit"
    directory.mkdir()
    cache._write(directory, NAME, b"code")
    directory.chmod(0o777)
    for use in (cache._read, lambda *where: cache._write(*where, b"code")):
        with pytest.raises(OSError, match="can write to"):
            use(directory, NAME)
    directory.chmod(0o700)
    directory.rename(home / "elsewhere")
    directory.symlink_to("elsewhere")
    for use in (cache._read, lambda *where: cache._write(*where, b"code")):
        with pytest.raises(OSError):  # noqa: PT011 - the message is the operating system's
            use(directory, NAME)


@owners
@pytest.mark.parametrize("swapped", ["file", "directory"])
def test_what_is_swapped_after_the_check_is_not_read(home, monkeypatch, swapped):
    """A file that is replaced after the check is not read, because the checked file is already open."""
    directory = home / "replaykit"
    directory.mkdir()
    cache._write(directory, NAME, b"ours")
    real, is_swapped = os.fstat, stat.S_ISREG if swapped == "file" else stat.S_ISDIR
    swaps = []

    def swap(descriptor):
        status = real(descriptor)
        if is_swapped(status.st_mode):
            swaps.append(descriptor)
            (directory if swapped == "directory" else directory / NAME).rename(home / "away")
            directory.mkdir(exist_ok=True)
            (directory / NAME).write_bytes(b"theirs")
        return status

    monkeypatch.setattr(os, "fstat", swap)
    assert cache._read(directory, NAME) == b"ours"
    assert len(swaps) == 1


@owners
@pytest.mark.parametrize("made", ["link", "pipe", "directory"])
def test_what_is_swapped_before_the_file_is_opened_is_refused(home, monkeypatch, made):
    """A file that is replaced before it is opened is refused. A pipe does not block."""
    cache._write(home, NAME, b"ours")
    (home / "theirs").write_bytes(b"theirs")
    real = os.fstat

    def swap(descriptor):
        status = real(descriptor)
        if stat.S_ISDIR(status.st_mode):
            (home / NAME).unlink()
            {
                "link": lambda path: path.symlink_to("theirs"), "pipe": os.mkfifo, "directory": os.mkdir,
            }[made](home / NAME)  # fmt: skip
        return status

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", swap)
        with pytest.raises(OSError):  # noqa: PT011 - the message is the operating system's
            cache._read(home, NAME)


@pytest.fixture
def without_owners(monkeypatch):
    """A platform like Windows, without owners of files and without descriptors of directories."""
    monkeypatch.delattr(os, "geteuid", raising=False)
    real = os.open

    def without_directories(path, flags, mode=0o777, *, dir_fd=None):
        assert dir_fd is None
        assert not os.path.isdir(path)
        return real(path, flags & ~getattr(os, "O_NOFOLLOW", 0), mode)

    monkeypatch.setattr(os, "open", without_directories)


@pytest.mark.usefixtures("without_owners")
def test_without_owners_files_are_kept(home, monkeypatch):
    """Without owners, the directory is created, and permissions are ignored."""
    directory = used(monkeypatch, home / "cache")
    directory.chmod(0o777)
    cache._write(directory, NAME, b"code")
    (directory / NAME).chmod(0o666)
    assert cache._read(directory, NAME) == b"code"


@pytest.mark.usefixtures("without_owners")
@pytest.mark.parametrize("tag", [0, 0xA0000003])
def test_without_owners_junctions_are_refused(home, monkeypatch, tag):
    """Without owners, a junction is refused, because it leads elsewhere."""
    junction = types.SimpleNamespace(st_mode=stat.S_IFDIR | 0o777, st_reparse_tag=tag)
    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", lambda path: junction)
        assert look(patch, home) == (None if tag else home / "replaykit", [])


@pytest.mark.usefixtures("without_owners")
def test_without_owners_other_things_are_refused(home, monkeypatch):
    """Without owners, a file in place of the directory, or a directory in place of a file, is refused."""
    (home / "replaykit").write_bytes(b"")
    assert look(monkeypatch, home) == (None, [])
    (home / NAME).mkdir()
    with pytest.raises(OSError, match="not of the expected kind"):
        cache._read(home, NAME)


@pytest.mark.usefixtures("without_owners")
@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege")
def test_without_owners_links_are_refused(home, monkeypatch):
    """Without owners, a link in place of the directory or of a file is refused."""
    (home / "elsewhere").mkdir()
    (home / "replaykit").symlink_to("elsewhere")
    assert look(monkeypatch, home) == (None, [])
    (home / "real").write_bytes(b"code")
    (home / NAME).symlink_to("real")
    with pytest.raises(OSError, match="is a link"):
        cache._read(home, NAME)
