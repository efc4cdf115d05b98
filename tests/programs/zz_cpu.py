import time, importlib
def run(comm, name, *args):
    m,f=name.rsplit(".",1)
    t=time.process_time(); getattr(importlib.import_module(m),f)(comm,*args); return time.process_time()-t
