"""A conversation with a model of a run."""

from collections.abc import Callable

from automixalign.data.pairs import Message
from automixalign.inference.run_model import RunModel
from automixalign.models.generate import Answer, Decoding


class Conversation:
    """What a user and a model have said, with a system message or without."""

    def __init__(self, model: RunModel, system: str | None = None) -> None:
        self.model = model
        self._start: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self.messages = list(self._start)

    def reset(self) -> None:
        """Forget all but the system message."""
        self.messages = list(self._start)

    def say(self, text: str, decoding: Decoding, write: Callable[[str], object]) -> Answer:
        """Let the model answer a message of the user. Only an answered message stays in the conversation.

        Args:
            text: the message.
            decoding: how to generate.
            write: gets each piece of the answer as soon as it is there.

        Raises:
            DataError: the chat template refuses the conversation.
            ModelError: there is no chat template, or the conversation leaves no room for an answer.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        answer = self.model.stream(self.model.ids(messages), decoding, write)
        self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        return answer
