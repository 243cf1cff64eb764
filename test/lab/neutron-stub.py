#!/usr/bin/python3
"""neutron-stub.py PORT: answers the few questions that Nova asks Neutron about a server WITHOUT networks. Not Neutron: it knows no networks at all."""
import http.server
import json
import sys


class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        path = self.path.split('?')[0].rstrip('/')
        name = path.rsplit('/', 1)[-1].replace('.json', '')
        if name in ('', 'v2.0'):
            body = {'versions': [{'id': 'v2.0', 'status': 'CURRENT', 'links': []}], 'resources': []}
        else:
            body = {name.replace('-', '_'): []}
        answer = json.dumps(body).encode()
        self.send_response(200)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Answers).serve_forever()
