"""
A mail server for a host of the lab: takes mail over STARTTLS from who knows its account, and writes down each as a line of JSON.

    mail_server.py ADDRESS PORT CERTIFICATE KEY ACCOUNT FILE

ACCOUNT is a file with user and password on two lines. Without TLS nobody may log in, and without a login nobody may send.
"""

import base64
import email
import json
import socketserver
import ssl
import sys

ADDRESS, PORT, CERTIFICATE, KEY, ACCOUNT, FILE = sys.argv[1:]
with open(ACCOUNT) as account:
    USER, PASSWORD = account.read().split()
TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
TLS.load_cert_chain(CERTIFICATE, KEY)


class Session(socketserver.StreamRequestHandler):
    timeout = 60

    def say(self, line):
        self.wfile.write(line.encode() + b"\r\n")
        self.wfile.flush()

    def handle(self):
        self.secure = self.known = False
        self.letter = {}
        self.say("220 mail")
        while line := self.rfile.readline():  # another one after STARTTLS
            verb, _, rest = line.decode().strip().partition(" ")
            if self.answer(verb.upper(), rest):
                return

    def answer(self, verb, rest):
        if verb == "EHLO":
            self.say("250-mail")
            self.say("250 AUTH PLAIN" if self.secure else "250 STARTTLS")
        elif verb == "STARTTLS":
            self.say("220 go on")
            self.request = TLS.wrap_socket(self.request, server_side=True)
            self.secure = True
            self.setup()
        elif verb == "AUTH" and self.secure:
            said = base64.b64decode(rest.partition(" ")[2]).decode().split("\0")[1:]
            self.known = said == [USER, PASSWORD]
            self.say("235 welcome" if self.known else "535 who are you?")
        elif verb in ("MAIL", "RCPT") and self.known:
            self.letter[verb] = rest
            self.say("250 well")
        elif verb == "DATA" and self.known:
            self.say("354 go on")
            text = b"".join(iter(self.rfile.readline, b".\r\n"))
            self.keep(email.message_from_bytes(text))
            self.say("250 well")
        elif verb == "QUIT":
            self.say("221 bye")
            return True
        else:
            self.say("530 not so")
        return False

    def keep(self, message):
        parts = [part.get_payload(decode=True).decode() for part in message.walk() if not part.is_multipart()]
        found = {"from": self.letter["MAIL"], "to": self.letter["RCPT"], "subject": " ".join(message["Subject"].split()), "text": "\n".join(parts)}
        with open(FILE, "a") as file:
            file.write(json.dumps(found) + "\n")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True


Server((ADDRESS, int(PORT)), Session).serve_forever()
