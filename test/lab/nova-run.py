#!/usr/bin/python3
"""nova-run.py PROGRAM ARGS...: run a Nova program with SQLite transactions that take the write lock when they begin.

Nova's library of databases begins transactions as readers. One that then wants to write while another process has written is refused at once
("database is locked"), whatever the timeout: on a busy machine a request in a hundred would end in 500. Beginning as a writer waits instead.
"""
import runpy
import sqlite3
import sys


class Cursor(sqlite3.Cursor):
    def execute(self, sql, *args):
        return super().execute('BEGIN IMMEDIATE' if sql == 'BEGIN' else sql, *args)


class Connection(sqlite3.Connection):
    def cursor(self, factory=Cursor):
        return super().cursor(factory)


connect = sqlite3.connect
sqlite3.connect = sqlite3.dbapi2.connect = lambda *args, **kwargs: connect(*args, **{**kwargs, 'factory': Connection})
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
