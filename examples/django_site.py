"""A Django site in one file. Its processes share a cache, sessions and a lock, kept by Oarlock; nothing else is shared.

    python django_site.py 8001 127.0.0.1:12379,127.0.0.1:22379,127.0.0.1:32379
    python django_site.py 8002 127.0.0.1:12379,127.0.0.1:22379,127.0.0.1:32379

Needs `pip install "oarlock[django]"`.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, cast
from wsgiref.simple_server import WSGIServer, make_server

from django.conf import settings
from django.core.cache import cache
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from oarlock.fencing import Fenced, check_sqlite

if TYPE_CHECKING:
    from oarlock.contrib.django import OarlockCache


def hits(request: HttpRequest) -> HttpResponse:
    """Each request has a number of its own, whichever process answers."""
    cache.add("hits", 0, timeout=None)
    return JsonResponse({"hits": cache.incr("hits")})


def sign_in(request: HttpRequest) -> HttpResponse:
    request.session["name"] = request.GET["name"]
    return JsonResponse({"name": request.session["name"]})


def who_am_i(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"name": request.session.get("name"), "process": os.getpid()})


def report(request: HttpRequest) -> HttpResponse:
    """Work that must not be done twice at a time; a process that was paused in it writes nothing when it wakes."""
    with cast("OarlockCache", cache).lock("report", ttl=3) as lock:  # Django's type of `cache` knows no locks
        print("holds", lock.token, flush=True)
        time.sleep(float(request.GET.get("seconds", 0)))  # the work
        connection = sqlite3.connect("reports.db", isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            check_sqlite(connection, "report", lock.token)
            connection.execute("CREATE TABLE IF NOT EXISTS reports (token INTEGER)")
            connection.execute("INSERT INTO reports VALUES (?)", (lock.token,))
            connection.execute("COMMIT")
        except Fenced as error:
            return JsonResponse({"fenced": str(error)}, status=409)
        finally:
            connection.close()
    return JsonResponse({"token": lock.token})


urlpatterns = [path("hits", hits), path("sign-in", sign_in), path("who-am-i", who_am_i), path("report", report)]


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


def main(port: int, members: str) -> None:
    settings.configure(
        ALLOWED_HOSTS=["127.0.0.1", "localhost"],
        ROOT_URLCONF=__name__,
        SECRET_KEY="for-this-example-only",
        MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
        INSTALLED_APPS=["django.contrib.sessions"],
        SESSION_ENGINE="django.contrib.sessions.backends.cache",
        CACHES={"default": {"BACKEND": "oarlock.contrib.django.OarlockCache", "LOCATION": members}},
    )
    with make_server("127.0.0.1", port, get_wsgi_application(), server_class=Server) as server:
        print("serves", server.server_port, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1:2379")
