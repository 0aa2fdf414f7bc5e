"""An app in the browser: captions of one image with the attention maps of their words, or of many images."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import gradio as gr
from gradio.data_classes import FileData

from .app_requests import MAX_BEAMS, MAX_TOKENS, AppRequests
from .captioners import Captioner

MAX_WAITING = 100  # requests in the queue
MAX_FILE_SIZE = "50mb"
_HOUR = 3600  # seconds
_FRAME = (
    '<iframe srcdoc="{}" title="Attention maps" sandbox="allow-scripts" '
    'style="width: 100%; height: 46rem; border: 0"></iframe>'
)
# The framed page sends its height.
_FIT_FRAMES = """
() => addEventListener("message", ({ source, data }) => {
  for (const frame of document.querySelectorAll("iframe"))
    if (frame.contentWindow === source) frame.style.height = `${data.height}px`;
})
"""
# The gallery shows complete captions, each of an image's captions on its own line; one column on phones.
_CSS = """
.gallery-item .caption-label { white-space: pre-line; overflow-wrap: anywhere; max-width: 100%; }
div.block .html-container { padding: 0; }
@media (max-width: 40rem) { .grid-wrap .grid-container { grid-template-columns: 1fr; } }
"""
_CLEAR = '() => [{__type__: "update", choices: [], value: null, visible: false}, ""]'
_HIDE = '() => Array(4).fill({__type__: "update", visible: false})'


def launch_app(
    captioners: Mapping[str, Captioner], *, host: str | None = None, port: int | None = None
) -> gr.Blocks:
    """Start the app in threads of this process.

    Args:
        captioners: The captioners by name.
        host: The address to listen on. By default GRADIO_SERVER_NAME in the environment, or 127.0.0.1.
        port: The port. By default GRADIO_SERVER_PORT in the environment, or the first free one from 7860 on.

    Returns:
        The running app: it has the address in `local_url`, and `block_thread()` waits for its end.

    Raises:
        OSError: The port is in use.
    """
    app = build_app(captioners)
    app.launch(
        css=_CSS,
        js=_FIT_FRAMES,
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        max_file_size=MAX_FILE_SIZE,
        footer_links=[],
        run_history=False,
    )
    return app


def build_app(captioners: Mapping[str, Captioner]) -> gr.Blocks:
    """Build the app for some captioners, of which the first is the default.

    Nothing is loaded from other hosts. One request computes at a time, uploaded files are removed after an
    hour.
    """
    names, requests = list(captioners), AppRequests(captioners)
    with gr.Blocks(title="ituning app", analytics_enabled=False, delete_cache=(_HOUR, _HOUR)) as app:
        if len(names) == 1:
            gr.HTML(f"<h1>{escape(names[0])}</h1>")
        captioner = gr.Dropdown(names, value=names[0], label="Captioner", visible=len(names) > 1)
        with gr.Accordion("Options", open=False), gr.Row():
            beams = gr.Slider(1, MAX_BEAMS, step=1, precision=0, label="Beams")
            number = gr.Slider(1, MAX_BEAMS, value=1, step=1, precision=0, label="Captions")
            prompt = gr.Textbox(label="Prompt", placeholder="How every caption begins", max_length=1000)
            length = gr.Slider(1, MAX_TOKENS, step=1, precision=0, label="Maximum tokens")
        options = [beams, number, prompt, length]
        beams.value, length.value = requests.defaults(names[0])
        with gr.Tab("One image"), gr.Row():
            with gr.Column():
                image = gr.Image(label="Image", sources=["upload", "clipboard", "webcam"], height=360)
                # Functions receive its path: the package reads the file, and explains errors.
                image.preprocess = _path_of  # type: ignore[method-assign,assignment]
                # Refuses the paths of other files, which gr.Image's own model accepts without `meta`.
                image.data_model = FileData  # type: ignore[assignment]
                button = gr.Button("Caption", variant="primary")
            with gr.Column(scale=2):
                choices = gr.Radio([], label="Captions", visible=False)
                words = gr.HTML(label="Words")
        with gr.Tab("Many images"), gr.Row():
            with gr.Column():
                files = gr.File(label="Images", file_count="multiple", file_types=["image"])
                many_button = gr.Button("Caption all", variant="primary")
            with gr.Column(scale=2):
                unreadable = gr.HTML(visible=False)
                gallery = gr.Gallery(label="Captions", columns=3, object_fit="contain", visible=False)
                with gr.Row():
                    tables = [
                        gr.DownloadButton(f"Download {suffix}", visible=False)
                        for suffix in ("JSON lines", "CSV")
                    ]

        def caption(*values: Any) -> Any:
            captions = requests.caption(*values)
            return gr.Radio(choices=captions, value=captions[0], visible=True)

        def explain(name: str, path: str, text: str) -> str:
            return _FRAME.format(escape(requests.explain(name, path, text)))

        def caption_files(*values: Any) -> Any:
            shown, *paths, note = requests.caption_files(*values, progress=gr.Progress())
            return (
                gr.Gallery(shown, visible=True),
                *(gr.DownloadButton(value=path, visible=True) for path in paths),
                gr.HTML(escape(note), visible=bool(note)),
            )

        queue: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "captioner"}
        explained: dict[str, Any] = {
            "fn": explain,
            "inputs": [captioner, image, choices],
            "outputs": words,
            "api_visibility": "private",
            **queue,
        }
        captioned = button.click(caption, [captioner, image, *options], choices, api_name="caption", **queue)
        cleared: dict[str, Any] = {"fn": None, "outputs": [choices, words], "js": _CLEAR}
        for event in (captioned, captioned.success(**explained), choices.input(**explained)):
            event.failure(**cleared)
        results = [gallery, *tables, unreadable]
        many_button.click(
            caption_files, [captioner, files, *options], results, api_name="caption_files", **queue
        ).failure(None, outputs=results, js=_HIDE)
        captioner.change(
            requests.defaults,
            captioner,
            [beams, length],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )
        # In the browser: an answer of the server could arrive after the next captions.
        gr.on([captioner.change, image.change], **cleared)
    return app.queue(max_size=MAX_WAITING)


def _path_of(payload: FileData | None) -> str | None:
    return None if payload is None else payload.path
