"""The Flower app of a device: hands every message to the device, and its answer back."""

import logging
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from federation.device import Device, Settings
from federation.messages import from_content, size_of, to_content
from federation.parts import ALONE, ANSWER, HELLO, LEARN, NETWORK, RANK, Parts
from utils.errors import UserError, as_shown

MEGABYTE = 10**6

app = ClientApp()


def settings_of(context: Context) -> Settings:
    """The device's settings, as its owner gave them to the SuperNode (`--node-config`).

    Raises:
        UserError: if the folder is missing.
    """
    given = context.node_config
    if "device" not in given:
        raise UserError("--node-config lacks device=FOLDER: start the device with run_pickaback/federated.sh")
    return Settings(
        folder=Path(str(given["device"])),
        max_bytes=int(float(given["max-megabytes"]) * MEGABYTE),
        shares_images=bool(given["shares-images"]),
    )


def handled(message: Message, context: Context, action: Callable[[Device, Parts], Parts]) -> Message:
    """The reply to a message; one of a `UserError` is `error` with the reason."""
    try:
        settings = settings_of(context)
        if size_of(message.content) > settings.max_bytes:
            raise UserError(f"the message is larger than {settings.max_bytes:,} bytes")
        reply = action(Device(settings), from_content(message.content))
    except UserError as error:
        logging.error("%s", error)
        reply = {"error": {"reason": as_shown(str(error))}}
    return Message(to_content(reply), reply_to=message)


def _action(message_type: str) -> str:
    return message_type.partition(".")[2]


@app.query(_action(HELLO))
def hello(message: Message, context: Context) -> Message:
    """Say which task this is, and what it looks for as a target."""
    return handled(message, context, lambda device, _: device.announcement())


@app.query(_action(ANSWER))
def answer(message: Message, context: Context) -> Message:
    """Answer targets as a candidate."""
    return handled(message, context, Device.answer)


@app.query(_action(NETWORK))
def network(message: Message, context: Context) -> Message:
    """Send the pruned network."""
    return handled(message, context, lambda device, _: device.network())


@app.query(_action(RANK))
def rank(message: Message, context: Context) -> Message:
    """Choose among the candidates as a target."""
    return handled(message, context, Device.rank)


@app.train(_action(LEARN))
def learn(message: Message, context: Context) -> Message:
    """Train the target on the network that was sent."""
    return handled(message, context, Device.learn)


@app.train(_action(ALONE))
def alone(message: Message, context: Context) -> Message:
    """Report on the task without a backbone."""
    return handled(message, context, lambda device, _: device.row())
