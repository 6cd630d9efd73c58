"""Requests to libxml2's module for Python, as in host.h: each connection has a thread of its own."""
import io
import socketserver

import libxml2


def characters(text):
    """How many characters a document has that is read from a file object."""
    reader = libxml2.inputBuffer(io.StringIO(text)).newTextReader("memory")
    count = 0
    while (more := reader.Read()) == 1:
        if reader.NodeType() == 3:
            count += len(reader.Value())
    return f"{count} characters, {more}"


class Connection(socketserver.StreamRequestHandler):
    def handle(self):
        # A document that lives on.
        kept = libxml2.parseDoc("<log><entry/></log>")
        while line := self.rfile.readline():
            name, size = line.split()
            text = self.rfile.read(int(size)).decode()
            if name == b"characters":
                answer = characters(text)
            else:
                answer = kept.xpathEval(text)[0].name
            data = answer.encode()
            self.wfile.write(b"%d\n%s" % (len(data), data))
        kept.freeDoc()


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


libxml2.registerErrorHandler(lambda *_: None, None)
with Server(("127.0.0.1", 0), Connection) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
