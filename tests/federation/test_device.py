"""A device alone: what it answers, and what it accepts."""

from tests.federation.conftest import TASKS
from tests.helpers import Fleet, assert_same_checkpoint, load, same

def exchange(devices, target, *, networks=False):
    others = {n: d for n, d in devices.items() if n != target}
    announced = {f"target.{target}": devices[target].announcement()["announcement"]}
    request = {}
    for n, d in others.items():
        reply = d.answer(announced)
        request[f"answer.{n}"] = reply["answer"]
        request[f"evidence.{n}"] = reply[f"evidence.{target}"]
        if networks:
            request |= {f"network.{n}": d.network()["network"]}
    return request

def test_x(make_device, trained_fleet, tmp_path):
    for rule in ("farthest","rsa","cka","leep","random","room"):
        devices = {n: make_device(name, "--select", rule) for n, name in TASKS.items()}
        request = exchange(devices, 3, networks=rule=="leep")
        out = devices[3].rank(request)
        print(rule, out)
    best = out["ranking"]["order"][0]
    r = devices[3].learn({"backbone": {"id": best, "pruned": request[f"answer.{best}"]["pruned"], "stamp": out["ranking"]["stamp"], "refused": []}, "network": devices[best].network()["network"]})
    print(r)
