"""A contents manager for jupyter_server that follows no symbolic link.

A kernel writes to its workspace, and the server, which is outside the sandbox, opens by name what
lies there. With a link in the place of a notebook or of a folder a kernel would have the server
read, or overwrite, any file of the user's. In the server's config file::

    c.ServerApp.contents_manager_class = "sandbox_kernel.contents.NoLinksFileManager"

Files are opened, renamed and removed through descriptors (:mod:`~sandbox_kernel.beneath`). What is
still looked up by name (``os.path.exists`` and its like in jupyter_server) decides which answer is
given, and neither reads nor changes a file.

Hard links are not refused. Linux makes none across mounts, and a workspace is a mount of its own:
what a kernel can give a second name there it can write under the first one.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from typing import Any

import nbformat
from jupyter_server.files.handlers import FilesHandler
from jupyter_server.services.contents.filecheckpoints import AsyncFileCheckpoints
from jupyter_server.services.contents.fileio import AsyncFileManagerMixin
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from jupyter_server.utils import to_api_path
from tornado.web import HTTPError
from traitlets import default

from . import beneath


class NoLinks(AsyncFileManagerMixin):
    """What a contents manager and its checkpoints have in common: how files are opened.

    An ``os_path`` is absolute, below ``root_dir``. Errors are HTTP 403 where a link is refused.
    """

    root_dir: str

    @contextlib.contextmanager
    def _folder(self, os_path: str) -> Iterator[tuple[int, str]]:
        """The folder of ``os_path``, opened without following a link, and its name in there.

        An ELOOP of what is done with them is a link too: an HTTPError 403.
        """
        try:
            root = os.path.abspath(self.root_dir)
            with self.perm_to_403(os_path), beneath.parent_of(root, os_path) as (folder, name):
                yield folder, name
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise self._refusal(os_path) from None
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EXDEV):
                path = to_api_path(os_path, self.root_dir)
                raise HTTPError(404, f"{path} does not exist") from None
            raise

    def _refusal(self, os_path: str) -> HTTPError:
        path = to_api_path(os_path, os.path.abspath(self.root_dir))
        return HTTPError(
            403,
            f"{path} is refused: it is a symbolic link or lies behind one, and a kernel can have "
            "made that lead to any file; remedy: delete the link, or open what it leads to",
        )

    def _get_os_path(self, path: str) -> str:
        """A link as the last part passes: it can be shown and deleted, and opening it fails."""
        os_path: str = super()._get_os_path(path)
        try:
            with self._folder(os_path):
                return os_path
        except HTTPError as error:
            if error.status_code != 404:  # what is not there yet may be made
                raise
            return os_path

    @contextlib.contextmanager
    def open(self, os_path: str, mode: str = "r", **kwargs: Any) -> Iterator[Any]:
        with self._folder(os_path) as (folder, name):
            with beneath.open_file(folder, name, mode, **kwargs) as file:
                yield file

    @contextlib.contextmanager
    def atomic_writing(
        self, os_path: str, text: bool = True, encoding: str = "utf-8", **kwargs: Any
    ) -> Iterator[Any]:
        """As jupyter_server's, but what is whole replaces the old file; no link is written to."""
        if text:
            kwargs = {"encoding": encoding, "newline": "\n"} | kwargs
        kind = "" if text else "b"
        with self._folder(os_path) as (folder, name):
            if not self.use_atomic_writing:
                with beneath.open_file(folder, name, "w" + kind, **kwargs) as file:
                    yield file
                return
            with beneath.replacing(folder, name, kind, **kwargs) as file:
                yield file

    async def _copy(self, src: str, dest: str) -> None:
        with self.open(src, "rb") as old, self.atomic_writing(dest, text=False) as new:
            os.fchmod(new.fileno(), stat.S_IMODE(os.fstat(old.fileno()).st_mode))
            await asyncio.to_thread(shutil.copyfileobj, old, new)

    def _rename(self, old: str, new: str) -> None:
        """Rename within the root; what has the new name already is replaced."""
        with self._folder(old) as (old_folder, old_name), self._folder(new) as (folder, name):
            os.rename(old_name, name, src_dir_fd=old_folder, dst_dir_fd=folder)


class NoLinksCheckpoints(NoLinks, AsyncFileCheckpoints):
    """Checkpoints beside their file always: the temporary folder is everybody's."""

    def checkpoint_path(self, checkpoint_id: str, path: str) -> str:
        parent, name = os.path.split(self._get_os_path(path.strip("/")))
        stem, suffix = os.path.splitext(name)
        place = os.path.join(parent, self.checkpoint_dir)
        # where it cannot be made there is no checkpoint, and making one says why
        with contextlib.suppress(OSError, HTTPError), self._folder(place) as (folder, name):
            os.mkdir(name, dir_fd=folder)
        return os.path.join(place, f"{stem}-{checkpoint_id}{suffix}")

    async def rename_checkpoint(self, checkpoint_id: str, old_path: str, new_path: str) -> None:
        old = self.checkpoint_path(checkpoint_id, old_path)
        if os.path.isfile(old):
            self._rename(old, self.checkpoint_path(checkpoint_id, new_path))

    async def delete_checkpoint(self, checkpoint_id: str, path: str) -> None:
        with self._folder(self.checkpoint_path(checkpoint_id, path)) as (folder, name):
            os.unlink(name, dir_fd=folder)


class NoLinksFileManager(NoLinks, AsyncLargeFileManager):  # type: ignore[misc]
    """:class:`AsyncLargeFileManager`, jupyter_server's own, that follows no link."""

    @default("checkpoints_class")
    def _checkpoints_class_default(self) -> type:
        return NoLinksCheckpoints

    @default("files_handler_class")
    def _files_handler_class_default(self) -> type:
        return FilesHandler  # asks this manager; the usual one opens by name

    def exists(self, path: str) -> bool:  # type: ignore[override]
        return os.path.lexists(self._get_os_path(path.strip("/")))

    async def is_hidden(self, path: str) -> bool:
        if os.path.islink(self._get_os_path(path.strip("/"))):  # by its name, not by its end
            return any(part.startswith(".") for part in path.split("/"))
        return bool(await super().is_hidden(path))

    async def _check_hidden(self, path: str) -> None:
        if not self.allow_hidden and await self.is_hidden(path):
            raise HTTPError(400, f"{path} is hidden")

    async def get_kernel_path(self, path: str, model: dict[str, Any] | None = None) -> str:
        """The folder of a new kernel: not one that a kernel chose by a link."""
        if os.path.islink(os_path := self._get_os_path(path)):
            raise self._refusal(os_path)
        return str(await super().get_kernel_path(path, model))

    async def get(self, path: str, content: bool = True, *args: Any, **kwargs: Any) -> Any:
        """A link is shown as a file that cannot be written, and is refused when it is opened."""
        path = path.strip("/")
        if not os.path.islink(os_path := self._get_os_path(path)):
            return await super().get(path, content, *args, **kwargs)
        if content or kwargs.get("require_hash"):
            raise self._refusal(os_path)
        return self._base_model(path) | {"type": "file", "writable": False}

    async def _dir_model(self, path: str, content: bool = True) -> dict[str, Any]:
        model: dict[str, Any] = self._base_model(path) | {"type": "directory", "size": None}
        if not content:
            return model
        entries = []
        for name in await asyncio.to_thread(self._names, self._get_os_path(path)):
            if self.should_list(name) and (self.allow_hidden or not name.startswith(".")):
                try:
                    entries.append(await self.get(f"{path}/{name}", content=False))
                except (OSError, HTTPError) as error:  # gone again, or not for the user
                    self.log.debug("%s is not listed: %s", name, error)
        return model | {"format": "json", "content": entries}

    def _names(self, os_path: str) -> list[str]:
        with self._folder(os_path) as (folder, name):
            return beneath.names(folder, name)

    async def _read_notebook(
        self, os_path: str, as_version: int = 4, capture_validation_error: Any = None,
        raw: bool = False,
    ) -> Any:  # fmt: skip
        """Without the search for an older text, by name: what is written here is never half."""
        text, _, *data = await self._read_file(os_path, "text", raw=True)
        try:
            notebook = await asyncio.to_thread(
                nbformat.reads, text, as_version=as_version,
                capture_validation_error=capture_validation_error,
            )  # fmt: skip
        except Exception as error:
            raise HTTPError(400, f"Unreadable Notebook: {os_path} {error!r}") from error
        return (notebook, *data) if raw else notebook

    async def _save_large_file(self, os_path: str, content: str, format: str | None) -> None:
        if format not in ("text", "base64"):
            raise HTTPError(400, "the format of a file's content is 'text' or 'base64'")
        try:
            data = content.encode() if format == "text" else base64.b64decode(content)
        except ValueError as error:
            raise HTTPError(400, f"the content of {os_path} is not {format}: {error}") from error
        with self.open(os_path, "ab") as file:
            await asyncio.to_thread(file.write, data)

    async def _save_directory(self, os_path: str, model: dict[str, Any], path: str = "") -> None:
        await self._check_hidden(path)
        with self._folder(os_path) as (folder, name):
            if (old := beneath.state(folder, name)) is None:
                os.mkdir(name, dir_fd=folder)
            elif not stat.S_ISDIR(old.st_mode):
                raise HTTPError(400, f"{path} is not a directory")

    async def rename_file(self, old_path: str, new_path: str) -> None:
        old, new = (self._get_os_path(path.strip("/")) for path in (old_path, new_path))
        if old == new:
            return
        await self._check_hidden(old_path)
        await self._check_hidden(new_path)
        if os.path.islink(old):
            raise self._refusal(old)
        if os.path.lexists(new):
            raise HTTPError(409, f"{new_path} exists already")
        self._rename(old, new)

    async def delete_file(self, path: str) -> None:
        """A link is removed, and what it leads to is left alone."""
        await self._check_hidden(path)
        os_path = self._get_os_path(path.strip("/"))
        with self._folder(os_path) as (folder, name):
            mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
            if self.delete_to_trash and not stat.S_ISLNK(mode):
                await asyncio.to_thread(self._trash, folder, name, os_path)
            elif not stat.S_ISDIR(mode):
                os.unlink(name, dir_fd=folder)
            else:
                with beneath.open_folder(folder, name) as fd:
                    kept = set(os.listdir(fd)) - {getattr(self.checkpoints, "checkpoint_dir", "")}
                    if kept and not self.always_delete_dir:
                        raise HTTPError(400, f"{path} is a directory that is not empty")
                await asyncio.to_thread(shutil.rmtree, name, dir_fd=folder)

    def _trash(self, folder: int, name: str, os_path: str) -> None:
        try:
            beneath.move_to_trash(folder, name, os_path)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            raise HTTPError(
                403,
                f"{name} cannot be moved to the trash: that is on another file system; remedy: "
                "set c.FileContentsManager.delete_to_trash = False to delete for good",
            ) from None

    async def _copy_dir(
        self, from_path: str, to_path_original: str, to_name: str, to_path: str
    ) -> Any:
        old, new = (self._get_os_path(path.strip("/")) for path in (from_path, to_path))
        if f"{new}/".startswith(f"{old}/"):
            raise HTTPError(400, f"{from_path} cannot be copied into itself")
        with self._folder(old) as (source, name), self._folder(new) as (target, new_name):
            await asyncio.to_thread(beneath.copy_tree, source, name, target, new_name)
        return await self.get(to_path, content=False)
