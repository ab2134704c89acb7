"""What stops a command here: sentences that say what to do, and an exit code."""

EXIT_FAILED = 1
EXIT_USAGE = 64


class Trouble(Exception):
    """Sentences for who typed the command, one each."""

    def __init__(self, *sentences: str, code: int = EXIT_FAILED) -> None:
        super().__init__(*sentences)
        self.sentences, self.code = sentences, code
