import pytest, continuum
from datetime import *
from tests.factories import RunFactory
pytestmark=pytest.mark.django_db
def test_it():
    a=RunFactory(attributes={"plan":"pro","n":{"x":1}}); b=RunFactory(state="completed"); c=RunFactory(namespace="b",state="failed",completed_at=datetime.now(UTC))
    for ns in ("default",None):
      for f in ("id","state","workflow","version","started_at","completed_at"):
        for d in ("asc","desc"):
          for w in ([],[("eq",["attributes","plan"],"pro")],[("eq","workflow","shop.order_flow")],[("eq","workflow","shop.order_flow"),("in","state",["completed","failed"])],[("gte","started_at",datetime(2020,1,1,tzinfo=UTC)),("startswith","state","f")],[("in","id",[a.id])],[("gt",["attributes","n","x"],0.5)], [("exists",["attributes","n"])],[("lt","completed_at",datetime.now(UTC))]):
            p=continuum.query(ns,w,(d,f),1); ids=[r.id for r in p.entries]
            while p.next_cursor:
                p=continuum.query(ns,w,(d,f),1,p.next_cursor); ids+=[r.id for r in p.entries]

            assert len(ids)==len(set(ids))==continuum.count(ns,w)
