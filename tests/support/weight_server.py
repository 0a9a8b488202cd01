"""A local server for one weight file with configurable faults."""

import contextlib
import hashlib
import http.server
import threading

CONTENT = bytes(range(256)) * 9000  # more than two chunks of 1 MiB
NAME = f"net-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


class Server(http.server.ThreadingHTTPServer):
    """Serve CONTENT; the attributes set its faults."""

    ranges = True  # answers Range requests with 206
    # closes the connection after this number of bytes
    breaks_after = None
    says_length = True
    nonsense = False  # answers with another protocol
    broken_chunks = False  # chunked encoding, truncated
    redirect = None  # target of /moved/
    shifted = False  # answers with another range
    says_range = True  # 416 contains the length of the file

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []  # the Range header of each request

    def url(self, name=NAME):
        return f"http://127.0.0.1:{self.server_address[1]}/weights/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append(self.headers.get("Range"))
        if server.nonsense:
            self.wfile.write(b"220 welcome to this mail server\r\n")
            return
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", server.redirect)
            self.end_headers()
            return
        if not self.path.startswith("/weights/net"):
            self.send_error(404)
            return
        begin = 0
        if self.headers.get("Range") and server.ranges:
            begin = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if begin >= len(CONTENT):
                self.send_response(416)
                if server.says_range:
                    self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            begin = 0 if server.shifted else begin
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT)}")
        else:
            self.send_response(200)
        body = CONTENT[begin:]
        if server.broken_chunks:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"1000\r\n" + body[:100])
            return
        if server.says_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.breaks_after])

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving():
    server = Server()
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def files(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []
