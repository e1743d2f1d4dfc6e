"""Verdicts kept in one SQLite file: judging again costs no call, and every verdict can be read."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from masters.data.answers import accepted_answers
from masters.errors import StageError
from masters.rewards.judging.items import JudgeItem, JudgeVerdict

# "MVRD" and the version of the tables, in the file's own header.
_APPLICATION, _VERSION = 0x4D565244, 1
_BUSY_SECONDS = 60.0
_TABLE = """
CREATE TABLE verdicts (
    key TEXT PRIMARY KEY, judge TEXT NOT NULL, prompt TEXT NOT NULL, question_id TEXT NOT NULL,
    question TEXT NOT NULL, choices TEXT NOT NULL, label TEXT NOT NULL, response TEXT NOT NULL,
    reward REAL CHECK (reward IN (0.0, 1.0)), reason TEXT NOT NULL, explanation TEXT NOT NULL,
    first_reply TEXT NOT NULL, second_reply TEXT NOT NULL, attempts INTEGER NOT NULL,
    time TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
)
"""
_COLUMNS = (
    "key, judge, prompt, question_id, question, choices, label, response, "
    "reward, reason, explanation, first_reply, second_reply, attempts"
)
# A verdict stays what it was, whoever comes later; what is missing is replaced by what is known.
_KEEP = f"""
INSERT INTO verdicts ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET
    reward = excluded.reward, reason = excluded.reason, explanation = excluded.explanation,
    first_reply = excluded.first_reply, second_reply = excluded.second_reply,
    attempts = excluded.attempts, time = excluded.time
WHERE verdicts.reward IS NULL
"""
# A WHERE before ON CONFLICT, which SQLite would else read as the condition of a join.
_ABSORB = _KEEP.replace(
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    f"SELECT {_COLUMNS} FROM other.verdicts WHERE true",
)


@dataclass(frozen=True, kw_only=True)
class KeptVerdict:
    """A verdict with what it was made from; ``verdict.reward`` is None where none came.

    Args:
        judge: the asker's name.
        prompt: the prompts' version and digest.
        question_id, question, choices, response: what was judged.
        label: each answer that was right, a line each.
        first_reply: the last try's first call, whole; empty where there was no reply.
        second_reply: of the second call; empty where it did not come to that.
        attempts: how many tries it took.
        time: when, in UTC; empty before it is kept.
    """

    judge: str
    prompt: str
    question_id: str
    question: str
    choices: tuple[str, ...]
    label: str
    response: str
    verdict: JudgeVerdict
    first_reply: str = ""
    second_reply: str = ""
    attempts: int = 1
    time: str = ""


def verdict_key(item: JudgeItem, judge: str, prompt: str) -> str:
    """Hash of everything a verdict depends on: judge, prompts, question, label, response."""
    question = item.question
    asked = [question.id, question.text, *question.choices]
    content = json.dumps([judge, prompt, asked, accepted_answers(question), item.response])
    return hashlib.sha256(content.encode()).hexdigest()


class VerdictCache:
    """Verdicts in one SQLite file, which several processes may use at once.

    Each verdict is written when it comes and survives the process; after a power cut the last ones
    may be asked for again. Use it in the thread and process that opened it.

    Args:
        path: made, with its folder, where it does not exist.

    Raises:
        StageError: the file is no cache of verdicts, of another version, or damaged.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            with self._explained():
                self._open()
        except BaseException:
            self._database.close()
            raise

    def _open(self) -> None:
        # One look under the lock: another process may be making the file at this moment.
        self._database.execute("BEGIN IMMEDIATE")
        found = self._pragma("application_id"), self._pragma("user_version")
        tables = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if found == (0, 0) and not tables:
            self._database.execute(_TABLE)
            self._database.execute(f"PRAGMA application_id = {_APPLICATION}")
            self._database.execute(f"PRAGMA user_version = {_VERSION}")
        elif found != (_APPLICATION, _VERSION):
            ours = found[0] == _APPLICATION
            what = f"of version {found[1]}" if ours else "another program's database"
            raise StageError(
                f"{self.path}: is {what}; expected a cache of verdicts of version {_VERSION}. "
                "Move it away, or name another file."
            )
        self._database.execute("COMMIT")
        # Readers and a writer do not wait for each other; where the file system knows no WAL,
        # SQLite stays with its journal.
        self._share()
        self._pragma("synchronous = NORMAL")

    def _share(self) -> None:
        # Changing the journal does not wait for a process that is opening the file too.
        until = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._pragma("journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.01)

    def find(self, key: str) -> KeptVerdict | None:
        """The verdict of a key; None where there is none or it is missing."""
        query = f"SELECT {_COLUMNS}, time FROM verdicts WHERE key = ? AND reward IS NOT NULL"
        with self._explained():
            row = self._database.execute(query, (key,)).fetchone()
        return None if row is None else _kept(row)

    def keep(self, key: str, kept: KeptVerdict) -> None:
        """Writes a verdict, at once; one that is there stays, one that was missing is replaced."""
        verdict = kept.verdict
        texts = (
            key, kept.judge, kept.prompt, kept.question_id, kept.question,
            json.dumps(kept.choices), kept.label, kept.response,
            verdict.reward, verdict.reason, verdict.explanation,
            kept.first_reply, kept.second_reply, kept.attempts,
        )  # fmt: skip
        row = [_storable(value) if isinstance(value, str) else value for value in texts]
        with self._explained():
            self._database.execute(_KEEP, row)

    def read(self, *, judge: str | None = None, prompt: str | None = None) -> Iterator[KeptVerdict]:
        """Everything that is kept, missing verdicts too, in order of question, label and response.

        Args:
            judge, prompt: only of this judge, or of these prompts.
        """
        query = (
            f"SELECT {_COLUMNS}, time FROM verdicts WHERE judge = coalesce(?, judge) "
            "AND prompt = coalesce(?, prompt) ORDER BY question_id, label, response, key"
        )
        with self._explained():
            for row in self._database.execute(query, (judge, prompt)):
                yield _kept(row)

    def absorb(self, path: Path) -> None:
        """Keeps the verdicts of another file too, as ``keep`` would."""
        VerdictCache(path).close()  # is it one of ours?
        with self._explained():
            self._database.execute("ATTACH ? AS other", (str(path),))
            try:
                self._database.execute(_ABSORB)
            finally:
                self._database.execute("DETACH other")

    def close(self) -> None:
        """Closes the file; nothing more can be read or kept."""
        self._database.close()

    def __enter__(self) -> VerdictCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pragma(self, text: str) -> object:
        row = self._database.execute(f"PRAGMA {text}").fetchone()
        return row[0] if row else None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StageError(
                f"{self.path}: verdicts cannot be read or kept: {error}; expected a file that can "
                "be written, on a disk with room. Verdicts kept so far are safe: run again."
            ) from error
        except sqlite3.DatabaseError as error:
            raise StageError(
                f"{self.path}: is no cache of verdicts, or a damaged one: {error}; expected an "
                "SQLite file of ours. Move it away: a new one is made, and its verdicts are asked "
                "for again."
            ) from error
        except OSError as error:
            raise StageError(
                f"{self.path}: its folder cannot be made: {error}; expected a place that can be "
                "written."
            ) from error


def _storable(text: str) -> str:
    # Half a surrogate pair has no UTF-8; the key, made of the text itself, still tells it apart.
    return text.encode("utf-8", "backslashreplace").decode()


def _kept(row: tuple) -> KeptVerdict:
    _, judge, prompt, question_id, question, choices, label, response, *rest = row
    reward, reason, explanation, first, second, attempts, time = rest
    return KeptVerdict(
        judge=judge,
        prompt=prompt,
        question_id=question_id,
        question=question,
        choices=tuple(json.loads(choices)),
        label=label,
        response=response,
        verdict=JudgeVerdict(reward=reward, reason=reason, explanation=explanation),
        first_reply=first,
        second_reply=second,
        attempts=attempts,
        time=time,
    )
