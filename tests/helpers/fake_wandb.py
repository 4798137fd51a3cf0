"""A stand-in for the W&B server: it takes a run's rows, files and alerts, and fails where it is told to."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "local-" + "0123456789" * 4


class FakeWandb:
    """A server for the unmodified client, as a context.

    Attributes:
        fault: "" (all is well), "refuse" (401 to all), "500", or "hang" (takes every request and never answers).
        stopped: Whether somebody has pressed "stop run".
        rows: What came as history, in order.
        alerts: Titles that came.
        runs: Variables of each UpsertBucket.
        files: Paths that were uploaded, with their bytes.
        known: Rows of a run that is already there, for a client that resumes.
        commands: What a sweep's agent is given to do, one for each heartbeat.
    """

    def __init__(self, fault: str = "") -> None:
        self.fault, self.stopped = fault, False
        self.rows: list[dict] = []
        self.alerts: list[str] = []
        self.runs: list[dict] = []
        self.files: dict[str, bytes] = {}
        self.known: list[dict] = []
        self.commands: list[dict] = []
        self._over = threading.Event()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                code, answer = stand_in._answer(self.command, self.path, body)
                if code == 0:  # hangs
                    stand_in._over.wait()
                    self.close_connection = True
                    return
                data = json.dumps(answer).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = _serve

        class Server(ThreadingHTTPServer):
            daemon_threads, block_on_close = True, False

            def handle_error(self, *_: object) -> None:
                """A client that went away is no news."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to come here."""
        return {"WANDB_BASE_URL": self.address, "WANDB_API_KEY": KEY, "WANDB_MODE": ""}

    def __enter__(self) -> "FakeWandb":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, method: str, path: str, body: bytes) -> tuple[int, dict]:
        if self.fault == "hang":
            return 0, {}
        if self.fault:
            return {"refuse": 401, "500": 500}[self.fault], {"errors": [{"message": "by design"}]}
        if method == "PUT":
            self.files[path] = body
            return 200, {}
        if path.endswith("/file_stream"):
            told = json.loads(body)
            lines = (told.get("files") or {}).get("wandb-history.jsonl", {}).get("content", [])
            self.rows += [json.loads(line) for line in lines]
            return 200, {"limits": {}} | ({"stopped": True} if self.stopped else {})
        if path.endswith("/graphql"):
            query = json.loads(body)
            return 200, {"data": self._graphql(query.get("query", ""), query.get("variables") or {})}
        return 200, {}

    def _graphql(self, query: str, variables: dict) -> dict:
        name = (re.search(r"(?:query|mutation)\s+(\w+)", query) or [None, ""])[1]
        if "upsertBucket" in query:
            self.runs.append(variables)
            bucket = {
                "id": "UnVu", "name": variables.get("name"), "displayName": variables.get("displayName"),
                "config": "{}", "historyLineCount": len(self.known), "sweepName": None,
                "project": {"id": "UHJv", "name": variables.get("project"), "entity": {"id": "RW50", "name": "us"}},
            }  # fmt: skip
            return {"upsertBucket": {"bucket": bucket, "inserted": not self.known}}
        if name == "Viewer" or "viewer" in query:
            viewer = {"id": "VXNl", "entity": "us", "username": "us", "email": "a@b.c", "flags": "{}"}
            return {"viewer": viewer | {"teams": {"edges": []}}}
        if name == "RunResumeStatus":
            return {"model": {"id": "m", "name": "m", "entity": {"id": "e", "name": "us"}, "bucket": self._resumed()}}
        if "createRunFiles" in query or name == "CreateRunFiles":
            urls = [{"name": f, "uploadUrl": f"{self.address}/upload/{f}"} for f in variables.get("files", [])]
            return {"createRunFiles": {"runID": "UnVu", "uploadHeaders": [], "files": urls}}
        if name == "NotifyScriptableRunAlert":
            self.alerts.append(variables.get("title", ""))
            return {"notifyScriptableRunAlert": {"success": True}}
        if name == "CreateAgent":
            return {"createAgent": {"agent": {"id": "QWdl"}}}
        if name == "Heartbeat":
            now = [self.commands.pop(0)] if self.commands else [{"type": "exit"}]
            return {"agentHeartbeat": {"agent": {"id": "QWdl"}, "commands": json.dumps(now)}}
        return {}

    def _resumed(self) -> dict | None:
        if not self.known:
            return None
        return {
            "id": "UnVu", "name": "run", "summaryMetrics": json.dumps(self.known[-1]), "displayName": "run",
            "logLineCount": 0, "historyLineCount": len(self.known), "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in self.known[-1:]]), "eventsTail": "[]",
            "config": "{}", "tags": [], "wandbConfig": json.dumps({"t": 1}),
        }  # fmt: skip
