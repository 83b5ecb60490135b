from debugnn.data.dataset import *
from debugnn.data.dataset import Arrays, Data, Split, assemble, cifar10, decoded, digits, mnist, regression
