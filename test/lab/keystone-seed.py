#!/usr/bin/python3
"""keystone-seed.py URL OUT.json: project, users, roles, the services of the lab in the catalog, an application credential and an EC2 (S3) key pair."""
import json, os, sys
import requests
url, out = sys.argv[1:3]
port = lambda n, d: os.environ.get(n, d)
s = requests.Session(); s.trust_env = False
def auth(user, pw, project):
    r = s.post(url + '/v3/auth/tokens', json={'auth': {'identity': {'methods': ['password'], 'password': {'user': {'name': user, 'domain': {'id': 'default'}, 'password': pw}}},
               'scope': {'project': {'name': project, 'domain': {'id': 'default'}}}}})
    r.raise_for_status(); return r.headers['X-Subject-Token'], r.json()['token']
tok, t = auth('admin', 'adminpw', 'admin')
s.headers['X-Auth-Token'] = tok
def post(path, **body):
    r = s.post(url + '/v3' + path, json=body); assert r.status_code < 300, (path, r.status_code, r.text); return r.json()
roles = {r['name']: r['id'] for r in s.get(url + '/v3/roles').json()['roles']}
for n in ('service', 'ResellerAdmin'):
    if n not in roles: roles[n] = post('/roles', role={'name': n})['role']['id']
proj = {n: post('/projects', project={'name': n, 'domain_id': 'default'})['project']['id'] for n in ('service', 'demo')}
users = {}
def user(name, pw, project, *rr):
    users[name] = post('/users', user={'name': name, 'password': pw, 'domain_id': 'default', 'default_project_id': proj[project]})['user']['id']
    for r in rr:
        assert s.put(f"{url}/v3/projects/{proj[project]}/users/{users[name]}/roles/{roles[r]}").status_code == 204
for name in ('swift', 'glance', 'nova', 'placement'): user(name, 'servicepw', 'service', 'admin', 'service')
user('demo', 'demopw', 'demo', 'member')
user('reader', 'readerpw', 'demo', 'reader')
swift = f"http://127.0.0.1:{port('PORT_KPROXY', '18081')}/v1/AUTH_%(project_id)s"
cat = {'object-store': ('swift', swift), 'image': ('glance', f"http://127.0.0.1:{port('PORT_GLANCE', '19292')}"),
       'compute': ('nova', f"http://127.0.0.1:{port('PORT_NOVA', '18774')}/v2.1"), 'placement': ('placement', f"http://127.0.0.1:{port('PORT_PLACEMENT', '18778')}"),
       'network': ('neutron', f"http://127.0.0.1:{port('PORT_NEUTRON', '19696')}")}
for typ, (name, u) in cat.items():
    sid = post('/services', service={'type': typ, 'name': name})['service']['id']
    for i in ('public', 'internal', 'admin'):
        post('/endpoints', endpoint={'service_id': sid, 'interface': i, 'region_id': 'RegionOne', 'url': u})
# what a member needs besides a password: an application credential and an EC2 (S3) key pair
tok, t = auth('demo', 'demopw', 'demo')
s.headers['X-Auth-Token'] = tok
ac = post(f"/users/{users['demo']}/application_credentials", application_credential={'name': 'ci'})['application_credential']
ec2 = post(f"/users/{users['demo']}/credentials/OS-EC2", tenant_id=proj['demo'])['credential']
json.dump({'projects': proj, 'users': users, 'app_credential': {'id': ac['id'], 'secret': ac['secret']}, 'ec2': {'access': ec2['access'], 'secret': ec2['secret']}}, open(out, 'w'), indent=1)
