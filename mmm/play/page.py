"""The layout of the page, in gradio, and its server. `Player` computes the answers.

This file is imported only when a page is opened, because gradio is in the extra `play`.
"""

from __future__ import annotations

import functools
import html
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from mmm.core.checks import suggest
from mmm.data.errors import Unreadable
from mmm.data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from mmm.maskers import maskers
from mmm.play.masks import Option, options_of
from mmm.play.player import Player
from mmm.play.sample import MAX_BYTES, builtin, builtin_names, read_sample

TITLE = "A masked model to play with"
NO_OTHER = "no other model"
ALL_HEADS = "mean of all heads"
FONTS = ("system-ui", "sans-serif")  # fonts of the machine, because the page loads nothing from other hosts
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # options of every event
WAITING = 32  # largest number of waiting requests; further ones are refused
_turns = itertools.count()


def component(name: str, label: str, elem_id: str) -> gr.HTML:
    """Returns the component that NAME.html and NAME.js in this package define.

    A subclass is not possible: gradio writes a file beside the code of each subclass of its components.
    """
    return gr.HTML(
        html_template=_file(f"{name}.html"), js_on_load=_file(f"{name}.js"), apply_default_css=False, elem_id=elem_id, label=label
    )


def build(player: Player) -> gr.Blocks:
    """Returns the page."""
    names = player.models.names
    depth, heads = player.shape(names[0])
    model = player.models.load(names[0])
    own = model.masker.config
    moving = model.data is not None and len(model.data.size) == 3
    first = next(name for name in builtin_names() if name.endswith(" (video)") == moving)
    suffixes = sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES)

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 600)) as page:
        gr.Markdown(f"# {TITLE}\nHide a part of an image or of a short video, and see what the model predicts.")
        status = gr.HTML(_status("Loading."), elem_id="status")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                file = gr.File(label=f"Image or short video, at most {MAX_BYTES // 2**20} MB", file_types=suffixes, height=150)
                sample = gr.Dropdown(builtin_names(), value=first, label="Or a built-in one", elem_id="sample")
                board = component("board", "Picture and mask", "board")
                with gr.Accordion("Draw the mask by a masker", open=False):
                    masker = gr.Dropdown(sorted(maskers.parts), value=own.name, label="Masker", elem_id="masker")
                    ratio = gr.Slider(
                        0.01, 0.99, value=own.ratio, step=0.01, label="Ratio: the fraction of all tokens that is hidden"
                    )
                    seed = gr.Number(0, label="Seed", precision=0)
                    frames = gr.Checkbox(False, label="Frame by frame: each frame of a video gets its own mask")

                    @gr.render(inputs=[masker])
                    def options(name: str) -> None:
                        controls = {option.name: _control(option) for option in options_of(name)}
                        button = gr.Button("Draw the mask", elem_id="draw")

                        @_answers(3, timed="Reconstructed")
                        def draw(values: dict[Any, Any], request: gr.Request) -> Any:
                            board = player.draw(
                                _session(request),
                                values[left],
                                name,
                                values[ratio],
                                int(values[seed] or 0),
                                {key: values[control] for key, control in controls.items()},
                                frame_by_frame=values[frames],
                            )
                            return see(request, values[left], values[right], board)

                        inputs = {left, right, ratio, seed, frames, *controls.values()}
                        button.click(draw, inputs, [board, view, figures, status], **QUIET)

            with gr.Column(scale=3, min_width=300):
                with gr.Row():
                    left = gr.Dropdown(names, value=names[0], label="Model", elem_id="left", min_width=140)
                    right = gr.Dropdown([NO_OTHER, *names], value=NO_OTHER, label="Beside it", elem_id="right", min_width=140)
                view = component("viewer", "Reconstructions", "view")
                figures = gr.HTML("", elem_id="figures")
                several = len(player.models.steps(names[0])) > 1
                steps = gr.Button("Animation of the steps of this run", elem_id="steps", visible=several)
                animation = component("viewer", "Animation of the steps", "animation")
        gr.Markdown("## Inside\nChoose the tool *Look* and click on a token of the picture.")
        with gr.Row():
            block = gr.Slider(1, depth, value=depth, step=1, label="Block", elem_id="block")
            head = gr.Dropdown(_heads(heads), value=ALL_HEADS, label="Head", elem_id="head")
        inside = component("viewer", "Inside", "inside")
        if player.folders:
            with gr.Row():
                folder = gr.Dropdown(list(player.folders), value=next(iter(player.folders)), label="Nearest in", elem_id="folder")
                search = gr.Button("Show the nearest", elem_id="search")
            near = component("viewer", "Nearest in the folder", "near")

        # --- events -----------------------------------------------------------------------------------------------------------
        def see(request: gr.Request, left: str, right: str, *before: Any) -> tuple[Any, ...]:
            """Reconstructs, and returns the values before that, the panels and the figures."""
            try:
                return *before, *player.show(_session(request), [left] if right in (NO_OTHER, left) else [left, right])
            except ValueError as error:
                raise _Partly(str(error), (*before, gr.skip(), gr.skip())) from error

        @_answers(5, timed="Reconstructed")
        def open_builtin(name: str, left: str, right: str, request: gr.Request) -> Any:
            return see(request, left, right, None, None, player.open(_session(request), builtin(name), left))

        @_answers(6, timed="Reconstructed")
        def open_file(path: str | None, left: str, right: str, request: gr.Request) -> Any:
            if path is None:
                return [gr.skip()] * 6
            try:
                board = player.open(_session(request), read_sample(path), left)
            except Unreadable as error:
                raise _Partly(f"This file cannot be read: {error}", (None, *[gr.skip()] * 5)) from error
            finally:  # the page keeps the file's bytes during the visit, and not the file
                Path(path).unlink(missing_ok=True)
            return see(request, left, right, None, None, None, board)

        @_answers(2, timed="Reconstructed")
        def reconstruct(left: str, right: str, request: gr.Request) -> Any:
            return see(request, left, right)

        @_answers(2, timed="Reconstructed")
        def paint(left: str, right: str, request: gr.Request, event: gr.EventData) -> Any:
            player.paint(_session(request), left, str(event.hidden))
            return see(request, left, right)

        @_answers(6, timed="Reconstructed")
        def change_model(left: str, right: str, request: gr.Request) -> Any:
            depth, heads = player.shape(left)
            blocks, choices = gr.Slider(1, depth, value=depth), gr.Dropdown(_heads(heads), value=ALL_HEADS)
            button = gr.Button(visible=len(player.models.steps(left)) > 1)
            return see(request, left, right, blocks, choices, button, player.board(_session(request), left))

        @_answers(1, timed="Animation made")
        def play_steps(left: str, request: gr.Request) -> Any:
            return player.steps(_session(request), left)

        @_answers(1, timed="Looked inside")
        def click(left: str, block: float, head: str, request: gr.Request, event: gr.EventData) -> Any:
            return player.look(_session(request), left, int(block), _head(head), token=int(event.token))

        @_answers(1, timed="Looked inside")
        def look(left: str, block: float, head: str, request: gr.Request) -> Any:
            return player.look(_session(request), left, int(block), _head(head))

        @_answers(1, timed="Searched")
        def neighbours(left: str, folder: str, request: gr.Request) -> Any:
            return player.neighbours(_session(request), left, folder)

        def leave(request: gr.Request) -> None:
            player.leave(_session(request))

        opened, both = [animation, inside, board, view, figures, status], [left, right]
        page.load(open_builtin, [sample, *both], opened, **QUIET)
        sample.input(open_builtin, [sample, *both], opened, **QUIET)
        file.upload(open_file, [file, *both], [file, *opened], **QUIET)
        left.input(change_model, both, [block, head, steps, *opened[2:]], **QUIET)
        right.input(reconstruct, both, [view, figures, status], **QUIET)
        board.input(paint, both, [view, figures, status], **QUIET)
        steps.click(play_steps, [left], [animation, status], **QUIET)
        board.select(click, [left, block, head], [inside, status], **QUIET)
        gr.on([block.release, head.input], look, [left, block, head], [inside, status], **QUIET)
        if player.folders:
            search.click(neighbours, [left, folder], [near, status], **QUIET)
        page.unload(leave)
    page.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
    return page


def serve(player: Player, *, host: str = "127.0.0.1", port: int | None = None, block: bool = True) -> tuple[gr.Blocks, str]:
    """Opens the page on an address of this machine.

    Args:
        host: 127.0.0.1 can be reached from this machine only, 0.0.0.0 from every machine that can reach this one.
        port: number of the port. None: the first free one from 7860.
        block: whether to return only when the server is stopped.

    Returns:
        The page, which `close` stops, and its address.
    """
    page = build(player)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=False,
        quiet=True,
        prevent_thread_lock=not block,
        max_file_size=MAX_BYTES,
        theme=gr.themes.Default(font=FONTS, font_mono=("monospace",)),
        css=_file("page.css"),
        footer_links=["settings"],
        ssr_mode=False,
        show_error=True,
    )
    return page, address


class _Partly(Exception):  # noqa: N818 (a part of the answer is there)
    """A partly failed answer, with the values of the successful parts."""

    def __init__(self, words: str, values: tuple[Any, ...]) -> None:
        super().__init__(words)
        self.values = values


def _control(option: Option) -> Any:
    """Returns a control for one option of a masker."""
    label = f"{option.name}: {option.text}" if option.text else option.name
    if isinstance(option.value, bool):
        return gr.Checkbox(option.value, label=label, interactive=True)
    if option.choices:
        return gr.Dropdown(list(option.choices), value=str(option.value), label=label, interactive=True)
    shown = " ".join(map(str, option.value)) if isinstance(option.value, list) else str(option.value)
    return gr.Textbox("none" if option.value is None else shown, label=label, interactive=True)


def _answers(count: int, timed: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes an event handler from a function that returns `count` values. It adds the status, which also shows errors."""

    def wrap(answer: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(answer)
        def handler(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                values = answer(*args)
            except _Partly as error:
                return *error.values, _status(str(error), bad=True)
            except (ValueError, Unreadable) as error:
                return *[gr.skip()] * count, _status(str(error), bad=True)
            took = time.perf_counter() - start
            return *(values if count > 1 else [values]), _status(f"{timed} in {took:.2f} seconds.")

        return handler

    return wrap


def _status(words: str, *, bad: bool = False) -> str:
    """Returns a status line. Its number changes, so that a screen reader also reads a repeated text."""
    turn = next(_turns)
    return f'<p class="mmm-status" role="status" data-turn="{turn}" data-bad="{str(bad).lower()}">{html.escape(words)}</p>'


def _session(request: gr.Request) -> str:
    """Returns the identifier of a visitor's session."""
    return str(request.session_hash)


def _heads(count: int) -> list[str]:
    return [ALL_HEADS, *(f"head {number + 1}" for number in range(count))]


def _head(choice: str) -> int | None:
    """Returns the number of the chosen head, or None for the mean.

    Raises:
        ValueError: it is not among the choices.
    """
    if choice == ALL_HEADS:
        return None
    number = choice.removeprefix("head ")
    if not number.isdecimal():
        raise ValueError(f"no head is called {choice!r}{suggest(choice, [ALL_HEADS])}")
    return int(number)


def _file(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
